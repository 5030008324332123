//! Hellos and requests in every cut, and what the standards print; a verdict on a beginning is the verdict on the whole.

use proptest::prelude::*;

use super::quic::{Initials, keys::Version, seal};
use super::samples::{extension, hello, hello_for, records, server_names};
use super::*;

fn name(text: &str) -> Sniffed {
    Sniffed::Name(text.parse().expect("a host name"))
}

fn none(why: Why) -> Sniffed {
    Sniffed::None(why)
}

/// What all of the bytes tell; every shorter beginning tells the same, or asks for more.
fn check(bytes: &[u8], expected: &Sniffed) {
    let mut last = Sniffed::NeedMore;
    for end in 0..=bytes.len() {
        let (_, sniffed) = stream(&bytes[..end]);
        if last != Sniffed::NeedMore {
            assert_eq!(sniffed, last, "{end} bytes of {}", bytes.escape_ascii());
        }
        last = sniffed;
    }
    assert_eq!(&last, expected, "{}", bytes.escape_ascii());
}

// S57: the same verdict however the hello is cut.
#[test]
fn a_server_name_is_found_over_any_records() {
    for size in [1, 2, 5, 100, 16_384] {
        check(
            &records(&hello_for("api.example.com"), size),
            &name("api.example.com"),
        );
    }
    check(
        &records(&hello_for("API.Example.COM"), 700),
        &name("api.example.com"),
    );
    check(
        &records(&hello_for("api.example.com."), 700),
        &name("api.example.com"),
    );
}

// S57: where two readers could differ, nobody is told a name.
#[test]
fn a_hello_that_names_no_one_server_tells_no_name() {
    let tell = |extensions: &[Vec<u8>]| records(&hello(extensions), 16_384);
    let one = || server_names(&["a.example"]);
    check(
        &tell(&[server_names(&["a.example", "b.example"])]),
        &none(Why::Ambiguous),
    );
    check(
        &tell(&[one(), server_names(&["b.example"])]),
        &none(Why::Ambiguous),
    );
    check(&tell(&[one(), one()]), &none(Why::Ambiguous));
    check(
        &tell(&[one(), extension(0xfe0d, &[0; 40])]),
        &none(Why::Hidden),
    );
    check(&tell(&[]), &none(Why::Absent));
    check(&tell(&[server_names(&["192.0.2.1"])]), &none(Why::Absent));
    check(&tell(&[server_names(&[])]), &none(Why::Malformed));
    check(&tell(&[server_names(&["a b"])]), &none(Why::Malformed));
    check(
        &tell(&[server_names(&["2130706433"])]),
        &none(Why::Malformed),
    );
    check(
        &tell(&[server_names(&["a.example\0.b.example"])]),
        &none(Why::Malformed),
    );
    check(
        &tell(&[extension(0, &[0, 4, 1, 0, 1, 0])]),
        &none(Why::Malformed),
    );
    check(&tell(&[extension(0, &[])]), &none(Why::Malformed));
    check(&tell(&[one(), vec![0, 1, 0]]), &none(Why::Malformed));
}

#[test]
fn a_hello_that_is_too_long_or_broken_is_told_as_that() {
    let long = hello(&[extension(51, &[0; 16_384]), server_names(&["a.example"])]);
    check(&records(&long, 16_384), &none(Why::TooLong));
    let whole = records(&hello_for("a.example"), 16_384);
    check(&whole[..whole.len() - 1], &Sniffed::NeedMore);
    check(&[22, 3, 1, 0, 0], &none(Why::Malformed)); // an empty fragment
    check(&[22, 3, 1, 0xff, 0xff], &none(Why::Malformed));
    check(&[22, 2, 0], &none(Why::Unknown));
    check(&[22, 3, 3, 0, 1, 2], &none(Why::Unknown)); // a server's hello
    let mut mixed = records(&hello_for("a.example"), 100);
    mixed[105] = 21; // an alert in its middle
    check(&mixed, &none(Why::Malformed));
    // Records of one byte: their heads use up what is looked at.
    let slow = records(
        &hello(&[extension(51, &[0; 2_000]), server_names(&["a.example"])]),
        1,
    );
    check(&slow, &none(Why::TooLong));
}

#[test]
fn the_host_of_a_request_is_found() {
    for request in [
        "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nAccept: */*\r\nhOST:A.Example:8080\t\r\n\r\n",
        "POST http://a.example/x HTTP/1.1\r\nHost: a.example\r\n\r\nbody\n\r\nHost: b.example",
        "GET http://a.example:80?q HTTP/1.0\r\n\r\n",
        "GET /?u=http://b.example/ HTTP/1.1\r\nHost: a.example\r\nX: é\r\n\r\n",
    ] {
        check(request.as_bytes(), &name("a.example"));
    }
}

// S58: disagreement is no name.
#[test]
fn a_request_that_names_no_one_host_tells_no_name() {
    for (request, why) in [
        (
            "GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n",
            Why::Ambiguous,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.example\r\nHost: a.example\r\n\r\n",
            Why::Ambiguous,
        ),
        (
            "GET http://a.example/ HTTP/1.1\r\nHost: b.example\r\n\r\n",
            Why::Ambiguous,
        ),
        (
            "GET http://a.example/ HTTP/1.1\r\nHost:\r\n\r\n",
            Why::Ambiguous,
        ),
        ("GET / HTTP/1.1\r\n\r\n", Why::Absent),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", Why::Absent),
        (
            "GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n",
            Why::Absent,
        ),
        ("GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", Why::Absent),
        (
            "CONNECT b.example:443 HTTP/1.1\r\nHost: b.example:443\r\n\r\n",
            Why::Absent,
        ),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Why::Absent),
        ("PRI * HTTP/2.0\r\n\r\nSX", Why::Malformed),
        (
            "GET / HTTP/1.1\r\nHost: a.example\r\n Host: b.example\r\n\r\n",
            Why::Malformed,
        ),
        ("GET / HTTP/1.1\r\nHost : a.example\r\n\r\n", Why::Malformed),
        (
            "GET / HTTP/1.1\r\nHost: a.example\nHost: b.example\r\n\r\n",
            Why::Malformed,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.example\rX: y\r\n\r\n",
            Why::Malformed,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.example\0\r\n\r\n",
            Why::Malformed,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a@b.example\r\n\r\n",
            Why::Malformed,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.example:x\r\n\r\n",
            Why::Malformed,
        ),
        ("GET / HTTP/1.1\r\nHost: 0x7f.1\r\n\r\n", Why::Malformed),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n", Why::Malformed),
        ("GET /a b HTTP/1.1\r\nHost: a.example\r\n\r\n", Why::Unknown),
        ("GET / HTTP/3\r\n", Why::Unknown),
        ("SSH-2.0-OpenSSH_9.2\r\n", Why::Unknown),
        ("*1\r\n$4\r\nPING\r\n", Why::Unknown),
        ("\n", Why::Unknown),
        ("AVERYLONGMETHODTHATISNONE /", Why::Unknown),
    ] {
        check(request.as_bytes(), &none(why));
    }
    check(b"", &Sniffed::NeedMore);
    check(b"GET / HTTP/1.1\r\nHost: a.example\r\n", &Sniffed::NeedMore);
    let slow = format!("GET /{} HTTP/1.1\r\n", "x".repeat(BUDGET));
    assert_eq!(stream(slow.as_bytes()).1, none(Why::TooLong));
    assert_eq!(stream(&slow.as_bytes()[..BUDGET - 1]).1, Sniffed::NeedMore);
}

const ID: [u8; 8] = [0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    digits
        .map(|two| u8::from_str_radix(std::str::from_utf8(two).expect("hex"), 16).expect("hex"))
        .collect()
}

/// The frames of RFC 9001 §A.2, which RFC 9369 §A.2 uses too.
fn frames_of_the_standard() -> Vec<u8> {
    let mut frames = bytes_of(concat!(
        "060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e868",
        "04fe3a47f06a2b69484c00000413011302010000c000000010000e00000b6578",
        "616d706c652e636f6dff01000100000a00080006001d00170018001000070005",
        "04616c706e000500050100000000003300260024001d00209370b2c9caa47fba",
        "baf4559fedba753de171fa71f50f1ce15d43e994ec74d748002b000302030400",
        "0d0010000e0403050306030203080408050806002d00020101001c0002400100",
        "3900320408ffffffffffffffff05048000ffff07048000ffff08011001048000",
        "75300901100f088394c8f03e51570806048000ffff",
    ));
    frames.resize(1_162, 0);
    frames
}

#[test]
fn packets_are_those_of_the_standards() {
    let frames = frames_of_the_standard();
    let one = seal::initial(Version::One, &ID, &ID, 2, &frames);
    let start = "c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11";
    assert_eq!(one.len(), 1_200);
    assert_eq!(one[..32], bytes_of(start));
    assert_eq!(one[1_184..], bytes_of("e221af44860018ab0856972e194cd934"));
    assert_eq!(Initials::default().handle(&one), name("example.com"));
    let two = seal::initial(Version::Two, &ID, &ID, 2, &frames);
    let start = "d76b3343cf088394c8f03e5157080000449ea0c95e82ffe67b6abcdb4298b485";
    assert_eq!(two[..32], bytes_of(start));
    assert_eq!(Initials::default().handle(&two), name("example.com"));
}

/// The hello as packets of so many bytes, the last ones first.
fn packets(version: Version, message: &[u8], size: usize) -> Vec<Vec<u8>> {
    let pieces = message.chunks(size).enumerate();
    let packets = pieces.map(|(at, piece)| {
        let frame = seal::crypto(at * size, piece);
        let number = u32::try_from(at).expect("few");
        seal::initial(version, &ID, &ID, number, &[frame, vec![1, 0, 0]].concat())
    });
    let mut packets: Vec<_> = packets.collect();
    packets.reverse();
    packets
}

#[test]
fn frames_in_any_order_over_several_packets_tell_the_name() {
    for version in [Version::One, Version::Two] {
        let packets = packets(version, &hello_for("quic.example"), 200);
        let mut initials = Initials::default();
        let (last, others) = packets.split_last().expect("several");
        for packet in others {
            assert_eq!(initials.handle(packet), Sniffed::NeedMore);
            assert_eq!(initials.handle(packet), Sniffed::NeedMore, "sent twice");
        }
        assert_eq!(initials.handle(last), name("quic.example"));
        assert_eq!(initials.handle(b"anything"), name("quic.example"));
        // All in one datagram, with padding behind.
        let together = [packets.concat(), vec![0; 40]].concat();
        assert_eq!(Initials::default().handle(&together), name("quic.example"));
    }
}

#[test]
fn the_keys_follow_a_retry_and_stay_when_the_server_chooses_an_id() {
    let message = hello_for("quic.example");
    let (start, rest) = message.split_at(600);
    let first = seal::initial(Version::One, &ID, &ID, 0, &seal::crypto(0, start));
    let chosen = [7; 8];
    let second = seal::initial(Version::One, &ID, &chosen, 1, &seal::crypto(600, rest));
    let mut initials = Initials::default();
    assert_eq!(initials.handle(&first), Sniffed::NeedMore);
    assert_eq!(initials.handle(&second), name("quic.example"));

    let mut initials = Initials::default();
    assert_eq!(initials.handle(&first), Sniffed::NeedMore);
    let other = hello_for("other.example");
    let again = seal::initial(Version::One, &chosen, &chosen, 1, &seal::crypto(0, &other));
    assert_eq!(initials.handle(&again), name("other.example"));
}

#[test]
fn what_is_no_initial_packet_of_a_client_tells_no_name() {
    let packet = |frames: &[u8]| seal::initial(Version::One, &ID, &ID, 0, frames);
    let tell = |datagram: &[u8]| Initials::default().handle(datagram);
    assert_eq!(tell(b""), Sniffed::NeedMore);
    assert_eq!(tell(&[0x40; 100]), none(Why::Unknown));
    assert_eq!(tell(&[0xc0, 0, 0, 0, 2, 0, 0, 0, 0]), none(Why::Unknown));
    assert_eq!(tell(&[0xc0, 0, 0, 0, 1, 21]), none(Why::Malformed));
    let mut damaged = packet(&seal::crypto(0, &hello_for("a.example")));
    *damaged.last_mut().expect("a packet") ^= 1;
    assert_eq!(tell(&damaged), none(Why::Malformed));
    assert_eq!(tell(&packet(&[0x1c, 0, 0, 0])), none(Why::Absent));
    assert_eq!(tell(&packet(&[0x08, 0, 0, 0])), none(Why::Malformed));
    assert_eq!(
        tell(&packet(&seal::crypto(0, &[2, 0, 0, 1]))),
        none(Why::Malformed)
    );
    assert_eq!(tell(&packet(&[0x06, 0x40])), none(Why::Malformed));
    let acknowledged = [
        vec![2, 0, 0, 1, 0, 0, 0],
        seal::crypto(0, &hello_for("a.example")),
    ];
    assert_eq!(tell(&packet(&acknowledged.concat())), name("a.example"));
    // The same place with other bytes.
    let twice = [seal::crypto(0, &[1, 0, 1]), seal::crypto(2, &[2, 0])].concat();
    assert_eq!(tell(&packet(&twice)), none(Why::Ambiguous));
    let hidden = hello(&[server_names(&["a.example"]), extension(0xfe0d, &[1])]);
    assert_eq!(tell(&packet(&seal::crypto(0, &hidden))), none(Why::Hidden));
}

#[test]
fn packets_without_end_are_given_up() {
    let mut initials = Initials::default();
    let told = (0..100).map(|n| {
        let ping = seal::initial(Version::One, &ID, &ID, n, &[1, 0, 0]);
        initials.handle(&ping)
    });
    assert_eq!(told.last(), Some(none(Why::TooLong)));
    // Gaps without end: one byte in two.
    let gaps: Vec<u8> = (0..200)
        .flat_map(|n| seal::crypto(2 * n + 9, b"x"))
        .collect();
    let packet = seal::initial(Version::One, &ID, &ID, 0, &gaps);
    assert_eq!(Initials::default().handle(&packet), none(Why::TooLong));
}

proptest! {
    #[test]
    fn any_bytes_behind_any_start_keep_what_was_decided(
        start in prop::sample::select(vec![
            vec![],
            b"GET / HTTP/1.1\r\n".to_vec(),
            b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n".to_vec(),
            records(&hello_for("a.example"), 300),
            records(&hello_for("a.example"), 300)[..900].to_vec(),
        ]),
        rest in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n'), Just(22), Just(b'A')], 0..60),
        at in any::<prop::sample::Index>(),
    ) {
        let whole = [start, rest].concat();
        let (_, early) = stream(&whole[..at.index(whole.len() + 1)]);
        if early != Sniffed::NeedMore {
            prop_assert_eq!(stream(&whole).1, early);
        }
    }

    #[test]
    fn a_name_is_found_whatever_cuts_and_order(
        label in "[a-z0-9]{1,20}",
        size in 1_usize..2_000,
        order in any::<prop::sample::Index>(),
    ) {
        let host = format!("{label}.example");
        let message = hello_for(&host);
        if size > 1 {
            // Records of one byte do not fit into what is looked at.
            prop_assert_eq!(stream(&records(&message, size)).1, name(&host));
        }
        let mut packets = packets(Version::One, &message, size.clamp(80, 1_100));
        let first = order.index(packets.len());
        packets.rotate_left(first);
        let mut initials = Initials::default();
        let told: Vec<_> = packets.iter().map(|packet| initials.handle(packet)).collect();
        prop_assert_eq!(told.last(), Some(&name(&host)));
    }
}
