//! A zebra at the client's FPM listener, played by the test.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::support::{Host, Lab, in_namespace, ip};

/// A frame of zebra's: 203.0.113.`last`/28, protocol bgp, metric 20, table main.
fn put(last: u8) -> Vec<u8> {
    let mut frame = vec![1, 1, 0, 48];
    for word in [44u32, 24 | 0x0501 << 16, 0, 0] {
        frame.extend_from_slice(&word.to_ne_bytes());
    }
    frame.extend_from_slice(&[2, 28, 0, 0, 254, 186, 0, 1, 0, 0, 0, 0]);
    for (kind, value) in [(1u16, [203, 0, 113, last]), (6, 20u32.to_ne_bytes())] {
        frame.extend_from_slice(&8u16.to_ne_bytes());
        frame.extend_from_slice(&kind.to_ne_bytes());
        frame.extend_from_slice(&value);
    }
    frame
}

fn connect() -> TcpStream {
    let zebra = TcpStream::connect("127.0.0.1:2620").unwrap();
    zebra.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    zebra
}

/// The next answer: last byte of the prefix, and flags.
fn answer(zebra: &mut TcpStream) -> (u8, u32) {
    let mut frame = [0; 48];
    zebra.read_exact(&mut frame).unwrap();
    assert_eq!(frame[..4], [1, 1, 0, 48]);
    // Behind the headers of frame and message: flags of the route; the first attribute is the prefix.
    (frame[39], u32::from_ne_bytes(frame[28..32].try_into().unwrap()))
}

fn assert_silent(zebra: &mut TcpStream) {
    zebra.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let read = zebra.read(&mut [0; 48]);
    assert!(matches!(&read, Err(error) if error.kind() == ErrorKind::WouldBlock), "{read:?}");
    zebra.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
}

#[test]
fn zebra_is_told_what_the_host_has_confirmed() {
    in_namespace("fpm::zebra_is_told_what_the_host_has_confirmed", || {
        let lab = Lab::new();
        let host = Host::start(&lab, 8);
        let client = lab.client("fpm_listen = \"127.0.0.1:2620\"");
        host.wait("snapshot", |table| table.snapshots == 1);
        host.hold(true);
        ip("route add 203.0.113.0/28 via 192.0.2.2 proto bgp metric 20");
        let mut zebra = connect();
        zebra.write_all(&[put(0), put(16)].concat()).unwrap();
        host.wait_has("main 203.0.113.0/28 m20 via 192.0.2.2 p0");
        assert_silent(&mut zebra);
        host.hold(false);
        assert_eq!(answer(&mut zebra), (0, 0x4000));
        // The other route is not there.
        assert_silent(&mut zebra);
        ip("route add 203.0.113.16/28 via 192.0.2.2 proto bgp metric 20");
        assert_eq!(answer(&mut zebra), (16, 0x4000));

        // Another zebra takes the place of one that does not know yet that it is gone, and is answered at once.
        let mut newer = connect();
        newer.write_all(&put(16)).unwrap();
        assert_eq!(answer(&mut newer), (16, 0x4000));
        assert_eq!(zebra.read(&mut [0; 48]).unwrap(), 0, "the older connection is closed");

        // What a lost host has confirmed still holds.
        drop(host);
        client.wait_log("no session with the host");
        assert_silent(&mut newer);
        newer.write_all(&put(0)).unwrap();
        assert_eq!(answer(&mut newer), (0, 0x4000));

        // What is no FPM is shown the door.
        newer.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(matches!(newer.read(&mut [0; 48]), Ok(0) | Err(_)), "the connection is closed");
        client.wait_log("what speaks here is no zebra");
    });
}
