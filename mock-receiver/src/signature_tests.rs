//! The signatures here are literals computed apart from this code, with Python's `hmac`. That of
//! [`published`] is the example that the Standard Webhooks libraries are tested with.

use axum::http::{HeaderName, HeaderValue};

use super::*;

const SIGNED_AT_UNIX_S: u64 = 1_614_265_330;
const BODY: &[u8] = b"{\"test\": 2432232314}";
const GOOD: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
/// Over the same request, but with the secret `another-secret`.
const OF_ANOTHER_KEY: &str = "v1,kgARwTNyR/4TNKTaMYTl9xe3PMicUpleXfmNj056srA=";

/// A request, as the sender would send it; each test changes one thing.
struct Case {
    secret: &'static str,
    headers: HeaderMap,
    body: Vec<u8>,
    now_unix_s: u64,
}

fn published() -> Case {
    let mut case = Case {
        secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        headers: HeaderMap::new(),
        body: BODY.to_vec(),
        now_unix_s: SIGNED_AT_UNIX_S,
    };
    case.set(ID, "msg_p5jXN8AQM9LWM0D4loKWxJek");
    case.set(TIMESTAMP, "1614265330");
    case.set(SIGNATURE, GOOD);
    case.set(HEX_TIMESTAMP, "2021-02-25T15:02:10.123Z");
    case.set(HEX_SIGNATURE, "2eb6c66f2b7e50698fc3405b47a951202bd225aaad93136d26461d142a589fce");
    case
}

/// A request with the webhook-id `evt_1`.
fn signed_with(secret: &'static str, body: &[u8], standard: &str, hex: &str) -> Case {
    let mut case = Case { secret, body: body.to_vec(), ..published() };
    case.set(ID, "evt_1");
    case.set(SIGNATURE, standard);
    case.set(HEX_SIGNATURE, hex);
    case
}

impl Case {
    fn set(&mut self, name: &'static str, value: &str) {
        let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
        self.headers.insert(HeaderName::from_static(name), value);
    }

    #[track_caller]
    fn check(&self, expected: Result<(), SignatureError>) {
        let verifier = Verifier::new(&self.secret.parse().unwrap());
        assert_eq!(verifier.verify(&self.headers, &self.body, self.now_unix_s), expected);
    }
}

#[track_caller]
fn check_signature(signature: &str, expected: Result<(), SignatureError>) {
    let mut case = published();
    case.set(SIGNATURE, signature);
    case.check(expected);
}

#[track_caller]
fn check_hex(timestamp: &str, signature: &str, expected: Result<(), SignatureError>) {
    let mut case = published();
    case.set(HEX_TIMESTAMP, timestamp);
    case.set(HEX_SIGNATURE, signature);
    case.check(expected);
}

#[test]
fn the_published_example_is_good() {
    published().check(Ok(()));
}

#[test]
fn any_bytes_may_be_signed() {
    signed_with(
        "change-me-in-production",
        b"{\"name\":\"Zo\xc3\xab\",\"n\":1}\n\x00\xff",
        "v1,RdAe1RdNgImCWFj5g+8ew777HxZLLJVqd0YdC3UIWkU=",
        "448b68eed786dd81386357bf4dda72f7474153c828087475d371095db2d4a19c",
    )
    .check(Ok(()));
    signed_with(
        "change-me-in-production",
        b"",
        "v1,7FfCNIVYMiPKQbxm/AsFRKwMpxoJ50bjoVjUpvoPZ8o=",
        "2f979c3ab88f676f0db3e8058fe99fd2c118b531dabf013973a49a5157e7d1be",
    )
    .check(Ok(()));
}

#[test]
fn whsec_secrets_of_24_to_64_bytes_are_decoded() {
    signed_with(
        "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX",
        b"{}",
        "v1,IxEwK1+pScdT9pMK1QexVmVayVqAj+ayFIvhVOC2iUM=",
        "2e450b43e7d99b45ba5d44a0d73c0bcc3559ff79babab14dfb661ea459ffe180",
    )
    .check(Ok(()));
    signed_with(
        "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7\
         PD0+Pw==",
        b"{}",
        "v1,o3vSs9lORD2oKhpknkQ8OB3Ch0i3gc4s+KrlqsqDqmI=",
        "6c9664694e1c0e0a1d7cb7b78e0e6719b84003e528b063c268f0d9a645fc7935",
    )
    .check(Ok(()));
}

#[test]
fn other_secrets_are_used_as_their_own_bytes() {
    signed_with(
        "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRY=", // 23 bytes
        b"{}",
        "v1,A2GMMi8f4mqNQs4P2XK0rPKrSfjPhjY/w5uFsPkCcVU=",
        "9765d725b3ee79002c7a190b93c55031f88996dbdaf123cbc212b8133e6011be",
    )
    .check(Ok(()));
    signed_with(
        "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7\
         PD0+P0A=", // 65 bytes
        b"{}",
        "v1,zIB3UMANjU7kpV2w2A2slGssy0N2SkxE6OLvN4c9ti0=",
        "ef717cb52315b9b32b7b4bd5694f70792eaf7d1603f0d7b4c3f12af56fbe029b",
    )
    .check(Ok(()));
    signed_with(
        "whsec_not base64!",
        b"{}",
        "v1,j0WoOdYyI0uog2ba64adrqjiNFvdMCUXhih45emOKRk=",
        "61973e7d903ab0da43d570a4a9b8f7aee93aa0a45e71ccd35764d142da6bbab7",
    )
    .check(Ok(()));
}

#[test]
fn an_empty_secret_is_refused() {
    assert_eq!("".parse::<Secret>().map(|_| ()), Err(EmptySecret));
}

#[test]
fn another_secret_is_no_match() {
    let mut case = published();
    case.secret = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
    case.check(Err(SignatureError::Mismatch(SIGNATURE)));
}

#[test]
fn one_good_signature_in_a_list_is_enough() {
    check_signature(&format!("{OF_ANOTHER_KEY} {GOOD}"), Ok(()));
    check_signature(&format!("{GOOD} {OF_ANOTHER_KEY}"), Ok(()));
    check_signature(&format!("v1a,AAAA v2,x v1,not-base64 v1, nonsense {GOOD}"), Ok(()));
    let mismatch = Err(SignatureError::Mismatch(SIGNATURE));
    check_signature(&format!("{OF_ANOTHER_KEY} {OF_ANOTHER_KEY}"), mismatch);
    check_signature(&format!("{OF_ANOTHER_KEY},{GOOD}"), mismatch);
}

#[test]
fn only_the_version_v1_counts() {
    for version in ["v1a", "v2", "V1", "v", "v11", ""] {
        let mismatch = Err(SignatureError::Mismatch(SIGNATURE));
        check_signature(&GOOD.replace("v1", version), mismatch);
    }
    check_signature(&GOOD["v1,".len()..], Err(SignatureError::Mismatch(SIGNATURE)));
}

#[test]
fn truncated_or_lengthened_signatures_are_no_match() {
    let mismatch = Err(SignatureError::Mismatch(SIGNATURE));
    check_signature(&GOOD[..GOOD.len() - 1], mismatch); // without its padding
    check_signature("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1A==", mismatch); // 31 bytes
    check_signature("v1,g0hM9SsE+OTPJTGt", mismatch); // 12 good bytes
    check_signature("v1,", mismatch);
    check_signature("", mismatch);
    check_signature("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OEA", mismatch); // 33 bytes
}

#[test]
fn a_changed_body_is_no_match() {
    let mut case = published();
    case.body[10] ^= 1;
    case.check(Err(SignatureError::Mismatch(SIGNATURE)));
    let mut case = published();
    case.body.push(b'\n');
    case.check(Err(SignatureError::Mismatch(SIGNATURE)));
}

#[test]
fn a_changed_id_or_time_is_no_match() {
    let mut case = published();
    case.set(ID, "msg_p5jXN8AQM9LWM0D4loKWxJel");
    case.check(Err(SignatureError::Mismatch(SIGNATURE)));
    let mut case = published();
    case.set(TIMESTAMP, "1614265331");
    case.check(Err(SignatureError::Mismatch(SIGNATURE)));
}

#[test]
fn times_are_good_for_five_minutes_in_both_directions() {
    let check = |now_unix_s, expected| Case { now_unix_s, ..published() }.check(expected);
    check(SIGNED_AT_UNIX_S + 300, Ok(()));
    check(SIGNED_AT_UNIX_S - 300, Ok(()));
    check(SIGNED_AT_UNIX_S + 301, Err(SignatureError::Stale));
    check(SIGNED_AT_UNIX_S - 301, Err(SignatureError::Stale));
}

/// Where a signature could be made over the odd value, it was, so that nothing else is wrong.
#[test]
fn malformed_ids_and_times_are_told() {
    let check = |name, value, signature, malformed| {
        let mut case = published();
        case.set(name, value);
        case.set(SIGNATURE, signature);
        case.check(Err(SignatureError::Malformed(malformed)));
    };
    check(ID, "", "v1,BbrBopkxy1IaPTmLxhGOIjtynRWNh3UqphKDPFaJ1cU=", ID);
    check(ID, "évt", GOOD, ID);
    let with_sign = "v1,JQsSpSSK1m9NI2FueDRZN3FL/jU9336idQcq6VmF+c8=";
    check(TIMESTAMP, "+1614265330", with_sign, TIMESTAMP);
    check(TIMESTAMP, "", GOOD, TIMESTAMP);
    check(TIMESTAMP, "2021-02-25T15:02:10Z", GOOD, TIMESTAMP);
    check(TIMESTAMP, "99999999999999999999", GOOD, TIMESTAMP);
}

#[test]
fn each_header_must_come_exactly_once() {
    for name in [ID, TIMESTAMP, SIGNATURE, HEX_TIMESTAMP, HEX_SIGNATURE] {
        let mut case = published();
        case.headers.remove(name);
        case.check(Err(SignatureError::Missing(name)));
        let mut case = published();
        case.headers.append(name, case.headers[name].clone());
        case.check(Err(SignatureError::Repeated(name)));
    }
}

#[test]
fn hex_signatures_are_over_the_text_of_the_time_as_it_came() {
    let of_millis = "2eb6c66f2b7e50698fc3405b47a951202bd225aaad93136d26461d142a589fce";
    let of_offset = "be9f67281fc28497e5bad70e1897f04a0a4666d078b450792fb84c7e1671cfd7";
    check_hex("2021-02-25T15:02:10.123Z", of_millis, Ok(()));
    check_hex("2021-02-25T15:02:10+00:00", of_offset, Ok(()));
    let mismatch = Err(SignatureError::Mismatch(HEX_SIGNATURE));
    check_hex("2021-02-25T15:02:10Z", of_millis, mismatch);
    check_hex("2021-02-25T15:02:10.1230Z", of_millis, mismatch);
}

#[test]
fn hex_signatures_must_be_whole_and_lower_case() {
    let good = "2eb6c66f2b7e50698fc3405b47a951202bd225aaad93136d26461d142a589fce";
    let check = |signature: &str, expected| {
        check_hex("2021-02-25T15:02:10.123Z", signature, Err(expected));
    };
    check(&good.to_uppercase(), SignatureError::Malformed(HEX_SIGNATURE));
    check(&good[..63], SignatureError::Malformed(HEX_SIGNATURE));
    check(&format!("{good}zz"), SignatureError::Malformed(HEX_SIGNATURE));
    check(&good[..62], SignatureError::Mismatch(HEX_SIGNATURE));
    check(&format!("{good}00"), SignatureError::Mismatch(HEX_SIGNATURE));
    check("", SignatureError::Mismatch(HEX_SIGNATURE));
}

/// The signatures are good over these texts; it is the texts that are not RFC 3339 UTC.
#[test]
fn the_time_beside_the_hex_signature_must_be_rfc_3339_utc() {
    let malformed = Err(SignatureError::Malformed(HEX_TIMESTAMP));
    check_hex(
        "1614265330",
        "e96203c6de850e7dc1fde7489ef6140b402d3a5a64fe250cd2eef9830fac1cef",
        malformed,
    );
    check_hex(
        "2021-02-25T16:02:10+01:00",
        "0f7e01093d38324b190215e418b9af909f41b67482adae020badb29c93e94627",
        malformed,
    );
    for text in ["2021-02-25 15:02:10Z", "2021-02-25T15:02:10.Z", "2021-02-25T15:02:10.1x3Z", "Z"] {
        check_hex(text, "00", malformed);
    }
}

#[test]
fn secrets_do_not_show_in_debug() {
    let secret: Secret = "s3cret".parse().unwrap();
    assert_eq!(format!("{secret:?}"), "Secret(redacted)");
}
