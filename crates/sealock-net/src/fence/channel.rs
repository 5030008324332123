//! What the two processes of a fence say to each other, over a socket pair that keeps packets apart.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::capture::Sockets;

/// One packet.
#[derive(Debug)]
pub(super) enum Word {
    /// From inside: the fence is up, and these are its sockets.
    Ready(Sockets),
    /// From inside: it cannot be set up, in words.
    Failed(String),
    /// To the inside: become the program.
    Go,
    /// From inside: the program cannot be started, by the system's number.
    NoProgram(i32),
    /// The other side has closed its end.
    Ended,
}

const SOCKETS_LIMIT: usize = 64; // two families of a few kinds, or of a few ports
const WORDS_LIMIT: usize = 4_096; // an error with its causes

// What a socket is for, in the order of the descriptors.
const STREAM: u8 = b's';
const NAME_STREAM: u8 = b'n';
const NAME_DATAGRAM: u8 = b'd';
const DATAGRAM: u8 = b'u';

/// Says a word. The sockets in it are copied, not given away.
pub(super) fn send(channel: BorrowedFd<'_>, word: &Word) -> io::Result<()> {
    let mut bytes = Vec::new();
    let mut descriptors = Vec::new();
    match word {
        Word::Ready(sockets) => {
            bytes.push(b'R');
            let kinds = [
                (STREAM, &sockets.streams),
                (NAME_STREAM, &sockets.name_streams),
                (NAME_DATAGRAM, &sockets.name_datagrams),
                (DATAGRAM, &sockets.datagrams),
            ];
            for (kind, list) in kinds {
                bytes.extend(list.iter().map(|_| kind));
                descriptors.extend(list.iter().map(AsFd::as_fd));
            }
        }
        Word::Failed(words) => {
            bytes.push(b'F');
            bytes.extend(words.bytes().take(WORDS_LIMIT - 1));
        }
        Word::Go => bytes.push(b'G'),
        Word::NoProgram(code) => {
            bytes.push(b'X');
            bytes.extend(code.to_ne_bytes());
        }
        Word::Ended => return Ok(()),
    }
    if descriptors.len() > SOCKETS_LIMIT {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_LIMIT))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    sendmsg(
        channel,
        &[IoSlice::new(&bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Waits for a word.
pub(super) fn receive(channel: BorrowedFd<'_>) -> io::Result<Word> {
    let mut bytes = [0_u8; WORDS_LIMIT];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_LIMIT))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(
            channel,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(list) = message {
            descriptors.extend(list);
        }
    }
    understand(&bytes[..received.bytes], descriptors)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn understand(bytes: &[u8], descriptors: Vec<OwnedFd>) -> Option<Word> {
    let Some((first, rest)) = bytes.split_first() else {
        return Some(Word::Ended);
    };
    match first {
        b'R' if rest.len() == descriptors.len() => {
            let mut sockets = Sockets::default();
            for (kind, socket) in rest.iter().zip(descriptors) {
                let list = match *kind {
                    STREAM => &mut sockets.streams,
                    NAME_STREAM => &mut sockets.name_streams,
                    NAME_DATAGRAM => &mut sockets.name_datagrams,
                    DATAGRAM => &mut sockets.datagrams,
                    _ => return None,
                };
                list.push(socket);
            }
            Some(Word::Ready(sockets))
        }
        b'F' => Some(Word::Failed(String::from_utf8_lossy(rest).into_owned())),
        b'G' => Some(Word::Go),
        b'X' => Some(Word::NoProgram(i32::from_ne_bytes(rest.try_into().ok()?))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        socketpair(family, kind, SocketFlags::CLOEXEC, None).expect("a pair")
    }

    #[test]
    fn sockets_arrive_under_the_name_that_they_were_sent_under() {
        let (inside, outside) = pair();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let other = TcpListener::bind("127.0.0.1:0").expect("a port");
        let sockets = Sockets {
            streams: vec![other.into()],
            name_streams: vec![listener.into()],
            ..Sockets::default()
        };
        send(inside.as_fd(), &Word::Ready(sockets)).expect("sent");
        let Ok(Word::Ready(mut sockets)) = receive(outside.as_fd()) else {
            panic!("another word");
        };
        let counts = [
            &sockets.streams,
            &sockets.datagrams,
            &sockets.name_datagrams,
        ]
        .map(Vec::len);
        assert_eq!(counts, [1, 0, 0]);
        let names = TcpListener::from(sockets.name_streams.remove(0));
        assert_eq!(names.local_addr().expect("bound"), address);
    }

    #[test]
    fn the_end_of_the_other_side_is_a_word_and_nonsense_is_an_error() {
        let (inside, outside) = pair();
        send(inside.as_fd(), &Word::NoProgram(2)).expect("sent");
        assert!(matches!(receive(outside.as_fd()), Ok(Word::NoProgram(2))));
        rustix::net::send(&inside, b"Rss", SendFlags::empty()).expect("sent");
        assert!(
            receive(outside.as_fd()).is_err(),
            "two sockets without a descriptor"
        );
        drop(inside);
        assert!(matches!(receive(outside.as_fd()), Ok(Word::Ended)));
    }
}
