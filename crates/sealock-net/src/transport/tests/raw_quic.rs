//! An agent's QUIC written by hand, as far as it takes to say what no library would (RFC 9000, RFC 9001).
//!
//! It shakes hands like anybody, and then puts any frames into its packets. What the other side answers after that is
//! not read: the test holds that side itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::Side;
use rustls::quic::{ClientConnection, DirectionalKeys, KeyChange, Keys, Version};

use super::*;

const ID: [u8; 8] = [0x5a; 8];
const TAG: usize = 16;
const NUMBER: usize = 4; // of bytes of every packet number here
const SAMPLE: usize = 16; // RFC 9001 §5.4.2
/// What a first packet is filled up to, RFC 9000 §14.1.
const DATAGRAM: usize = 1_200;
const PADDING: u8 = 0x00;
const PING: u8 = 0x01;
const ACK: u8 = 0x02;
const CRYPTO: u8 = 0x06;

/// A number of variable length, RFC 9000 §16.
pub(super) fn varint(value: u64) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    match value {
        0..=0x3f => vec![bytes[7]],
        0x40..=0x3fff => vec![0x40 | bytes[6], bytes[7]],
        0x4000..=0x3fff_ffff => [&[0x80 | bytes[4]][..], &bytes[5..]].concat(),
        _ => [&[0xc0 | bytes[0]][..], &bytes[1..]].concat(),
    }
}

fn take_varint(bytes: &mut &[u8]) -> u64 {
    let length = 1 << (bytes[0] >> 6);
    let (number, rest) = bytes.split_at(length);
    *bytes = rest;
    let first = u64::from(number[0] & 0x3f);
    number[1..]
        .iter()
        .fold(first, |value, byte| value << 8 | u64::from(*byte))
}

/// A transport parameter, RFC 9000 §18.
pub(super) fn parameter(id: u64, value: &[u8]) -> Vec<u8> {
    [&varint(id)[..], &varint(value.len() as u64), value].concat()
}

/// What an honest client says of itself.
pub(super) fn honest_parameters() -> Vec<u8> {
    let mut bytes = parameter(0x0f, &ID); // initial_source_connection_id
    for (id, value) in [
        (0x04, 1 << 20),
        (0x05, 1 << 20),
        (0x06, 1 << 20),
        (0x08, 100),
    ] {
        bytes.extend(parameter(id, &varint(value)));
    }
    bytes
}

/// The packets of one space, RFC 9000 §12.3.
struct Space {
    keys: Keys,
    next: u64,
    crypto_sent: u64,
    /// What came of the other side's handshake, by its offset, and how far it was read.
    crypto: BTreeMap<u64, Vec<u8>>,
    crypto_read: u64,
}

impl Space {
    fn new(keys: Keys) -> Self {
        Self {
            keys,
            next: 0,
            crypto_sent: 0,
            crypto: BTreeMap::new(),
            crypto_read: 0,
        }
    }

    /// A whole packet: `header` without the packet number, and frames.
    fn packet(&mut self, header: &[u8], frames: &[u8]) -> Vec<u8> {
        let number = self.next;
        self.next += 1;
        let mut packet = header.to_vec();
        packet.extend(u32::try_from(number).expect("few packets").to_be_bytes());
        let mut payload = frames.to_vec();
        let DirectionalKeys {
            header: mask,
            packet: key,
        } = &self.keys.local;
        let tag = key.encrypt_in_place(number, &packet, &mut payload);
        let tag = tag.expect("not too long");
        packet.extend(payload);
        packet.extend(tag.as_ref());
        let (first, rest) = packet.split_first_mut().expect("a header");
        let at = header.len() - 1;
        let (number, behind) = rest[at..].split_at_mut(NUMBER);
        mask.encrypt_in_place(&behind[..SAMPLE], first, number)
            .expect("a sample");
        packet
    }

    /// The frames of a packet whose number begins at `at`; nothing when it is not for these keys.
    fn open(&self, packet: &[u8], at: usize) -> Option<Vec<u8>> {
        let mut packet = packet.to_vec();
        let sample = packet.get(at + NUMBER..at + NUMBER + SAMPLE)?.to_vec();
        let (first, rest) = packet.split_first_mut()?;
        let keys = &self.keys.remote;
        let number = rest.get_mut(at - 1..at - 1 + NUMBER)?;
        keys.header.decrypt_in_place(&sample, first, number).ok()?;
        let length = usize::from(packet[0] & 3) + 1;
        let number = &packet[at..at + length];
        // The first packets have small numbers, so nothing of them is left out.
        let number = number
            .iter()
            .fold(0, |all, byte| all << 8 | u64::from(*byte));
        let (header, payload) = packet.split_at_mut(at + length);
        let frames = keys.packet.decrypt_in_place(number, header, payload);
        Some(frames.ok()?.to_vec())
    }

    fn hear(&mut self, mut frames: &[u8], tls: &mut ClientConnection) {
        while let Some((&kind, mut rest)) = frames.split_first() {
            match kind {
                PADDING | PING => {}
                ACK => {
                    let (_largest, _delay) = (take_varint(&mut rest), take_varint(&mut rest));
                    for _ in 0..=2 * take_varint(&mut rest) {
                        take_varint(&mut rest);
                    }
                }
                CRYPTO => {
                    let offset = take_varint(&mut rest);
                    let length = usize::try_from(take_varint(&mut rest)).expect("short");
                    let (bytes, behind) = rest.split_at(length);
                    self.crypto.insert(offset, bytes.to_vec());
                    rest = behind;
                }
                _ => return, // a farewell, or what is of no use to us
            }
            frames = rest;
        }
        while let Some(bytes) = self.crypto.remove(&self.crypto_read) {
            self.crypto_read += bytes.len() as u64;
            tls.read_hs(&bytes).expect("an honest relay");
        }
    }
}

/// A client whose packets say whatever a test wants.
pub(super) struct Raw {
    socket: UdpSocket,
    tls: ClientConnection,
    /// How the other side wants to be called.
    peer: Vec<u8>,
    initial: Space,
    handshake: Option<Space>,
    application: Option<Space>,
}

impl Raw {
    /// Dials, with these transport parameters; the handshake is still to be done.
    pub(super) async fn new(net: &Net, parameters: Vec<u8>) -> Self {
        let socket = UdpSocket::bind(LOOPBACK).await.expect("a port");
        socket.connect(net.address).await.expect("listening");
        // Each its own: by this name the other side tells its first packets from those of others.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let peer = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes().to_vec();
        let suite = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
        let suite = suite.tls13().and_then(|suite| suite.quic_suite());
        let keys = suite
            .expect("QUIC needs it")
            .keys(&peer, Side::Client, Version::V1);
        let config = tls::relay_client(&net.agent, &net.trust);
        let name = tls::unused_server_name();
        let tls = ClientConnection::new(config, Version::V1, name, parameters).expect("a client");
        Self {
            socket,
            tls,
            peer,
            initial: Space::new(keys),
            handshake: None,
            application: None,
        }
    }

    /// Shakes hands, until it may say what it wants.
    pub(super) async fn shake(&mut self) {
        self.shake_amid(&[]).await;
    }

    /// The same, with packets behind the first words that nobody has keys for yet. A first byte of each is enough:
    /// what follows is the connection's name and nonsense.
    pub(super) async fn shake_amid(&mut self, first_bytes: &[u8]) {
        let mut datagram = vec![0; 65_536];
        self.speak().await;
        for &first in first_bytes {
            let header = if first & 0x80 == 0 {
                [&[first][..], &self.peer].concat()
            } else {
                let length = u8::try_from(self.peer.len()).expect("short");
                let ids = [&[length][..], &self.peer, &[0]].concat();
                [&[first, 0, 0, 0, 1][..], &ids, &varint(64)].concat()
            };
            let packet = [&header[..], &[0xa5; 64]].concat();
            self.socket.send(&packet).await.expect("sent");
        }
        while self.application.is_none() {
            let received = tokio::time::timeout(SOON, self.socket.recv(&mut datagram)).await;
            let length = received.expect("an answer").expect("received");
            self.hear(&datagram[..length]);
            self.speak().await;
        }
    }

    /// Sends what TLS has to say.
    async fn speak(&mut self) {
        loop {
            let mut said = Vec::new();
            let change = self.tls.write_hs(&mut said);
            let is_first = self.handshake.is_none();
            for part in said.chunks(DATAGRAM / 2) {
                self.send_crypto(is_first, part).await;
            }
            match change {
                Some(KeyChange::Handshake { keys }) => self.handshake = Some(Space::new(keys)),
                Some(KeyChange::OneRtt { keys, .. }) => self.application = Some(Space::new(keys)),
                None if said.is_empty() => return,
                None => {}
            }
        }
    }

    async fn send_crypto(&mut self, is_first: bool, part: &[u8]) {
        let space = match &mut self.handshake {
            Some(space) if !is_first => space,
            Some(_) | None => &mut self.initial,
        };
        let (offset, length) = (varint(space.crypto_sent), varint(part.len() as u64));
        let mut frames = [&[CRYPTO][..], &offset, &length, part].concat();
        space.crypto_sent += part.len() as u64;
        frames.resize(frames.len().max(DATAGRAM), PADDING);
        // RFC 9000 §17.2: the form, the kind and the length of the packet number.
        let mut header = vec![if is_first { 0xc3 } else { 0xe3 }, 0, 0, 0, 1];
        for id in [&self.peer[..], &ID] {
            header.push(u8::try_from(id.len()).expect("short"));
            header.extend(id);
        }
        header.extend(is_first.then_some(0)); // no token
        let length = u64::try_from(NUMBER + frames.len() + TAG).expect("short");
        header.extend(varint(length));
        let packet = space.packet(&header, &frames);
        self.socket.send(&packet).await.expect("sent");
    }

    /// Takes in the long-headed packets of a datagram.
    fn hear(&mut self, mut datagram: &[u8]) {
        while datagram.first().is_some_and(|first| first & 0x80 != 0) {
            let kind = (datagram[0] & 0x30) >> 4;
            let mut rest = &datagram[5..];
            let mut ids = [Vec::new(), Vec::new()];
            for id in &mut ids {
                let length = usize::from(rest[0]);
                *id = rest[1..=length].to_vec();
                rest = &rest[1 + length..];
            }
            if kind == 0 {
                let token = usize::try_from(take_varint(&mut rest)).expect("short");
                rest = &rest[token..];
            }
            let length = usize::try_from(take_varint(&mut rest)).expect("short");
            let at = datagram.len() - rest.len();
            let (packet, behind) = datagram.split_at(at + length);
            let space = match kind {
                0 => Some(&mut self.initial),
                _ => self.handshake.as_mut(),
            };
            if let Some(space) = space
                && let Some(frames) = space.open(packet, at)
            {
                self.peer.clone_from(&ids[1]);
                space.hear(&frames, &mut self.tls);
                // The keys for what follows in the same datagram.
                let mut said = Vec::new();
                if kind == 0
                    && self.handshake.is_none()
                    && let Some(KeyChange::Handshake { keys }) = self.tls.write_hs(&mut said)
                {
                    self.handshake = Some(Space::new(keys));
                }
            }
            datagram = behind;
        }
    }

    /// Throws away what came, and says how many bytes it was.
    pub(super) fn heard(&mut self) -> usize {
        let mut datagram = vec![0; 65_536];
        let mut bytes = 0;
        while let Ok(length) = self.socket.try_recv(&mut datagram) {
            bytes += length;
        }
        bytes
    }

    /// Sends a packet with these frames.
    pub(super) async fn say(&mut self, frames: &[u8]) {
        let header = [&[0x43][..], &self.peer].concat();
        let space = self.application.as_mut().expect("the handshake is done");
        let mut frames = frames.to_vec();
        frames.resize(frames.len().max(SAMPLE), PADDING);
        let packet = space.packet(&header, &frames);
        self.socket.send(&packet).await.ok(); // the other side may be gone already
    }
}
