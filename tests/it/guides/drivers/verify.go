// Gives cases to the Verify of the guide. A line is one case: secret, id, timestamp, signatures
// and body in hexadecimal, `-` where there is none.
package main

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"os"
	"strings"

	"guide/webhook"
)

func main() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		var values [5][]byte
		for index, field := range fields {
			if field != "-" {
				value, err := hex.DecodeString(field)
				if err != nil {
					panic(err)
				}
				values[index] = value
			}
		}
		verdict := "refused"
		if webhook.Verify(string(values[0]), string(values[1]), string(values[2]), string(values[3]), values[4]) {
			verdict = "accepted"
		}
		fmt.Println(verdict)
	}
}
