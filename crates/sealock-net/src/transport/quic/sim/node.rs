//! One endpoint of the library and its connections, without a socket: datagrams in, datagrams and events out.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use noq_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig, Event,
    FourTuple, ServerConfig, Transmit,
};

use super::identity::{Identities, SERVER_NAME};
use crate::transport::quic::{PACKET_LIMIT, transport};
use crate::transport::{Settings, TransportKeys};

/// As often as a session in use shows that it lives.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(1);
pub(super) const IDLE: Duration = Duration::from_secs(10);

/// As many datagrams as the kernel takes in one call.
const BATCH: NonZeroUsize = NonZeroUsize::new(10).expect("ten");

pub(super) struct Node {
    endpoint: Endpoint,
    client: ClientConfig,
    pub(super) connections: BTreeMap<usize, Connection>,
    /// What is to be sent, and where to.
    pub(super) outbox: Vec<(SocketAddr, Vec<u8>)>,
}

impl Node {
    /// A process with these keys; the seed is for what the library draws.
    pub(super) fn new(
        identities: &Identities,
        keys: &TransportKeys,
        seed: [u8; 32],
        listens: bool,
    ) -> Self {
        let settings = Settings {
            keep_alive: KEEP_ALIVE,
            idle_timeout: IDLE,
            ..Settings::default()
        };
        let shared = |keep_alive| {
            let mut config = transport(&settings, None);
            config.keep_alive_interval(keep_alive);
            Arc::new(config)
        };
        let mut config = EndpointConfig::new(Arc::new(keys.reset_key()));
        let ids = keys.connection_ids();
        config.cid_generator(Arc::new(move || Box::new(ids.clone())));
        config.rng_seed(Some(seed));
        config
            .max_udp_payload_size(PACKET_LIMIT)
            .expect("a lawful size");
        let mut server = ServerConfig::with_crypto(Arc::clone(&identities.server) as _);
        server.transport_config(shared(None));
        let mut client = ClientConfig::new(Arc::clone(&identities.client) as _);
        client.transport_config(shared(Some(KEEP_ALIVE)));
        Self {
            endpoint: Endpoint::new(Arc::new(config), listens.then(|| Arc::new(server)), true),
            client,
            connections: BTreeMap::new(),
            outbox: Vec::new(),
        }
    }

    pub(super) fn connect(&mut self, now: Instant, to: SocketAddr) -> usize {
        let made = self
            .endpoint
            .connect(now, self.client.clone(), to, SERVER_NAME);
        let (handle, connection) = made.expect("an address and a name");
        self.connections.insert(handle.0, connection);
        handle.0
    }

    /// Takes a datagram; says which connection it has made, if one.
    pub(super) fn receive(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: &[u8],
    ) -> Option<usize> {
        let mut buffer = Vec::new();
        let path = FourTuple::new(from, None);
        let event = self
            .endpoint
            .handle(now, path, None, BytesMut::from(bytes), &mut buffer)?;
        match event {
            DatagramEvent::NewConnection(incoming) => {
                match self.endpoint.accept(incoming, now, &mut buffer, None) {
                    Ok((handle, connection)) => {
                        self.connections.insert(handle.0, connection);
                        return Some(handle.0);
                    }
                    Err(error) => {
                        if let Some(transmit) = error.response {
                            self.put(&transmit, &buffer);
                        }
                    }
                }
            }
            DatagramEvent::ConnectionEvent(handle, event) => {
                if let Some(connection) = self.connections.get_mut(&handle.0) {
                    connection.handle_event(event);
                }
            }
            DatagramEvent::Response(transmit) => self.put(&transmit, &buffer),
        }
        None
    }

    fn put(&mut self, transmit: &Transmit, buffer: &[u8]) {
        let size = transmit.segment_size.unwrap_or(transmit.size).max(1);
        for datagram in buffer[..transmit.size].chunks(size) {
            self.outbox.push((transmit.destination, datagram.to_vec()));
        }
    }

    /// Lets every connection do what is due, and gives what happened to them.
    pub(super) fn drive(&mut self, now: Instant) -> Vec<(usize, Event)> {
        let mut events = Vec::new();
        let handles: Vec<usize> = self.connections.keys().copied().collect();
        for handle in handles {
            let Some(mut connection) = self.connections.remove(&handle) else {
                continue;
            };
            if connection.poll_timeout().is_some_and(|at| at <= now) {
                connection.handle_timeout(now);
            }
            while let Some(event) = connection.poll_endpoint_events() {
                if let Some(answer) = self.endpoint.handle_event(ConnectionHandle(handle), event) {
                    connection.handle_event(answer);
                }
            }
            let mut buffer = Vec::new();
            while let Some(transmit) = connection.poll_transmit(now, BATCH, &mut buffer) {
                self.put(&transmit, &buffer);
                buffer.clear();
            }
            while let Some(event) = connection.poll() {
                events.push((handle, event));
            }
            if !connection.is_drained() {
                self.connections.insert(handle, connection);
            }
        }
        events
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.connections
            .values()
            .filter_map(Connection::poll_timeout)
            .min()
    }
}
