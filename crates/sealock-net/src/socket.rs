//! What the pipe needs of plain sockets beyond tokio.

use socket2::SockRef;
use std::os::fd::AsFd;
use std::time::Duration;

/// Makes the coming close of a TCP socket a reset (RST), so that its peer never takes it for a clean end.
pub fn reset_on_close(socket: &impl AsFd) {
    // Fails only on a socket that is closed already, and then there is nobody left to tell.
    let _gone = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}
