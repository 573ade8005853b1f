# Gives cases to the `verify` of the guide. A line is one case: secret, id, timestamp, signatures
# and body in hexadecimal, `-` where there is none.
require_relative "guide"

$stdin.each_line do |line|
  *texts, body = line.split.map { |hex| hex == "-" ? nil : [hex].pack("H*") }
  texts = texts.map { |text| text&.force_encoding("UTF-8") }
  puts verify(*texts, body) ? "accepted" : "refused"
end
