<?php
// Gives cases to the `verify` of the guide. A line is one case: secret, id, timestamp, signatures
// and body in hexadecimal, `-` where there is none.
require __DIR__ . '/guide.php';

while (($line = fgets(STDIN)) !== false) {
    $fields = array_map(fn ($hex) => $hex === '-' ? null : hex2bin($hex), explode(' ', trim($line)));
    echo verify(...$fields) ? 'accepted' : 'refused', "\n";
}
