/**
 * Gives cases to the class of the guide. A line is one case: secret, id, timestamp, signatures and
 * body in hexadecimal, `-` where there is none.
 */
final class Verify {
    private static byte[] bytes(String field) {
        return field.equals("-") ? null : java.util.HexFormat.of().parseHex(field);
    }

    private static String text(String field) {
        return field.equals("-") ? null : new String(bytes(field), StandardCharsets.UTF_8);
    }

    public static void main(String[] arguments) throws Exception {
        var lines = new java.io.BufferedReader(new java.io.InputStreamReader(System.in));
        for (String line; (line = lines.readLine()) != null; ) {
            String[] fields = line.split(" ");
            boolean isGenuine = WebhookVerifier.verify(
                    text(fields[0]), text(fields[1]), text(fields[2]), text(fields[3]), bytes(fields[4]));
            System.out.println(isGenuine ? "accepted" : "refused");
        }
    }
}
