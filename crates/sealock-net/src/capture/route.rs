//! The routes that turn a workload's packets back to its own loopback, told to the kernel over rtnetlink.
//!
//! Few messages of fixed form (rtnetlink(7)); every route and rule carries our protocol number, by which a later run
//! finds what an earlier one left. Deliberately absent: reading routes, and any route that is not ours.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::{Family, MARK};

const LOOPBACK: u32 = 1; // the index of `lo` in every namespace
const OUR_PROTOCOL: u8 = 86; // no routing daemon has this number (iproute2's rt_protos)
const TABLE_MAIN: u8 = 254;
const TABLE_LOCAL: u8 = 255;
/// The table that marked packets are looked up in; distributions leave those below 253 to their users.
const TABLE_MARKED: u8 = 186;

// linux/rtnetlink.h, linux/netlink.h, linux/fib_rules.h
const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
const REQUEST_WITH_ANSWER: u16 = 0x1 | 0x4;
const CREATE: u16 = 0x400;
const REPLACE: u16 = 0x100;
const EXCLUSIVE: u16 = 0x200;
const ERROR: u16 = 2;
const UNICAST: u8 = 1;
const LOCAL: u8 = 2;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_HOST: u8 = 254;
const OUT_INTERFACE: u16 = 4;
const PREFERRED_SOURCE: u16 = 7;
const ADDRESS: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
const RULE_MARK: u16 = 10;
const RULE_PROTOCOL: u16 = 21;
const RULE_TO_TABLE: u8 = 1;

/// The way to the kernel's routes of the namespace that it was opened in.
#[derive(Debug)]
pub(super) struct Routes {
    socket: OwnedFd,
}

impl Routes {
    /// Of the calling thread's namespace.
    pub(super) fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None, // NETLINK_ROUTE
        )?;
        Ok(Self { socket })
    }

    /// Brings loopback up.
    pub(super) fn raise_loopback(&self) -> io::Result<()> {
        const UP: u32 = 1;
        let mut message = Message::new(NEW_LINK, 0);
        message.bytes(&[0; 4]);
        message.number(LOOPBACK);
        message.number(UP); // the flags
        message.number(UP); // which of them to change
        self.ask(message)
    }

    /// Makes every address one of this namespace's own.
    pub(super) fn claim_all_addresses(&self, family: Family) -> io::Result<()> {
        let table = all_addresses(family);
        self.ask(route(NEW_ROUTE, CREATE | REPLACE, family, LOCAL, table))
    }

    /// Sends packets with our mark to this namespace itself, and gives programs inside a route that lets them begin.
    pub(super) fn claim_marked(&self, family: Family) -> io::Result<()> {
        if let Family::V4 = family {
            self.ask(source_address())?;
        }
        self.ask(route(
            NEW_ROUTE,
            CREATE | REPLACE,
            family,
            LOCAL,
            TABLE_MARKED,
        ))?;
        match self.ask(rule(NEW_RULE, CREATE | EXCLUSIVE, family)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            done => done?,
        }
        let mut begin = route(NEW_ROUTE, CREATE | REPLACE, family, UNICAST, TABLE_MAIN);
        match family {
            Family::V4 => begin.attribute(PREFERRED_SOURCE, &SOURCE.octets()),
            Family::V6 => {
                begin.attribute(PREFERRED_SOURCE, &std::net::Ipv6Addr::LOCALHOST.octets())
            }
        }
        self.ask(begin)
    }

    /// Removes all that [`Self::claim_all_addresses`] and [`Self::claim_marked`] made, also in an earlier run.
    pub(super) fn release(&self, family: Family) -> io::Result<()> {
        for (kind, table) in [
            (LOCAL, all_addresses(family)),
            (UNICAST, TABLE_MAIN),
            (LOCAL, TABLE_MARKED),
        ] {
            unless_absent(self.ask(route(DELETE_ROUTE, 0, family, kind, table)))?;
        }
        unless_absent(self.ask(rule(DELETE_RULE, 0, family)))
    }

    fn ask(&self, message: Message) -> io::Result<()> {
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.socket, &message.finish(), SendFlags::empty(), &kernel)?;
        let mut answer = [0_u8; 1024]; // the error's number, and our message again
        let (length, _) = rustix::net::recv(&self.socket, &mut answer[..], RecvFlags::empty())?;
        let kind = u16::from_ne_bytes([answer[4], answer[5]]);
        if length < 20 || kind != ERROR {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
        match code {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(-code)),
        }
    }
}

/// The table for the route that makes every address our own. A program's own IPv4 address is looked for in the local
/// table alone once the namespace has had a routing rule; IPv6 looks everywhere, and there the main table lets the routes
/// of other interfaces go first.
fn all_addresses(family: Family) -> u8 {
    match family {
        Family::V4 => TABLE_LOCAL,
        Family::V6 => TABLE_MAIN,
    }
}

fn unless_absent(done: io::Result<()>) -> io::Result<()> {
    let absent = [libc::ESRCH, libc::ENOENT, libc::EAFNOSUPPORT];
    match done {
        Err(error)
            if error
                .raw_os_error()
                .is_some_and(|code| absent.contains(&code)) =>
        {
            Ok(())
        }
        done => done,
    }
}

/// What IPv4 packets of a marked namespace come from: an address that no network uses (RFC 7600 gives it to tests of
/// dummies; it never leaves).
const SOURCE: std::net::Ipv4Addr = std::net::Ipv4Addr::new(192, 0, 0, 8);

fn source_address() -> Message {
    let mut message = Message::new(NEW_ADDRESS, CREATE | REPLACE);
    message.bytes(&[Family::V4.number(), 32, 0, SCOPE_UNIVERSE]);
    message.number(LOOPBACK);
    message.attribute(ADDRESS_LOCAL, &SOURCE.octets());
    message.attribute(ADDRESS, &SOURCE.octets());
    message
}

/// The default route over loopback.
fn route(verb: u16, flags: u16, family: Family, kind: u8, table: u8) -> Message {
    let scope = match (family, kind) {
        (Family::V4, LOCAL) => SCOPE_HOST,
        _ => SCOPE_UNIVERSE,
    };
    let mut message = Message::new(verb, flags);
    let lengths_and_tos = [0; 3];
    message.bytes(&[family.number()]);
    message.bytes(&lengths_and_tos);
    message.bytes(&[table, OUR_PROTOCOL, scope, kind]);
    message.number(0);
    message.attribute(OUT_INTERFACE, &LOOPBACK.to_ne_bytes());
    message
}

/// «What has our mark is looked up in our table.»
fn rule(verb: u16, flags: u16, family: Family) -> Message {
    let mut message = Message::new(verb, flags);
    message.bytes(&[family.number(), 0, 0, 0, TABLE_MARKED, 0, 0, RULE_TO_TABLE]);
    message.number(0);
    message.attribute(RULE_MARK, &MARK.to_ne_bytes());
    message.attribute(RULE_PROTOCOL, &[OUR_PROTOCOL]);
    message
}

/// A message as it grows.
struct Message(Vec<u8>);

impl Message {
    fn new(verb: u16, flags: u16) -> Self {
        let mut message = Self(vec![0; 4]); // the length comes last
        message.bytes(&verb.to_ne_bytes());
        message.bytes(&(REQUEST_WITH_ANSWER | flags).to_ne_bytes());
        message.number(1); // the sequence number: one question at a time
        message.number(0);
        message
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn number(&mut self, number: u32) {
        self.bytes(&number.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.bytes(&length.to_ne_bytes());
        self.bytes(&kind.to_ne_bytes());
        self.bytes(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}
