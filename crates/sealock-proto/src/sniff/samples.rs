//! Hellos as clients make them, for tests and the fuzzer.

fn vector(width: usize, bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("short").to_be_bytes();
    [&length[4 - width..], bytes].concat()
}

/// An extension.
pub(crate) fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector(2, body)].concat()
}

/// The extension that names these servers.
pub(crate) fn server_names(names: &[&str]) -> Vec<u8> {
    let entries = names.iter().map(|name| vector(2, name.as_bytes()));
    let list: Vec<u8> = entries.flat_map(|name| [vec![0], name].concat()).collect();
    extension(0, &vector(2, &list))
}

/// A hello with these extensions, as a handshake message.
pub(crate) fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
    let body = [
        vec![3, 3],
        vec![7; 32],
        vector(1, &[9; 32]),
        vector(2, &[0x3a, 0x3a, 0x13, 0x01]), // GREASE and a real one
        vector(1, &[0]),
        vector(2, &extensions.concat()),
    ];
    [vec![1], vector(3, &body.concat())].concat()
}

/// A hello for one server, as browsers send it.
pub(crate) fn hello_for(name: &str) -> Vec<u8> {
    hello(&[
        extension(0x4a4a, &[]),
        extension(51, &[5; 1_184]), // a post-quantum key
        server_names(&[name]),
        extension(0xfafa, &[0]),
    ])
}

/// A handshake message in records of at most so many bytes.
pub(crate) fn records(message: &[u8], size: usize) -> Vec<u8> {
    let pieces = message.chunks(size);
    pieces
        .flat_map(|piece| [vec![22, 3, 1], vector(2, piece)].concat())
        .collect()
}
