//! Carries an open flow: both directions until both ended, or until one ended abnormally, or until the permit is gone.
//!
//! Each direction ends on its own (half-close), and only by the clean end of its own sender. An abnormal end of either
//! side ends the whole flow at once, abnormally on the other side too and with the reason.

use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::try_join;
use sealock_core::reason::Reason;

use crate::io::{Io, Reader, Writer};
use crate::live::Permit;

/// Carries bytes between the two sides and says why it ended.
///
/// A function that gives a block, and no `async fn`: that would keep room for each side twice, for a flow's whole life.
///
/// # Cancel safety
/// Dropping the future drops both sides without their being told why; the pipe never does.
pub fn carry(
    near: Io,
    far: Io,
    permit: Permit,
) -> impl Future<Output = (Reason, Permit)> + Send + 'static {
    let (mut near_reader, mut near_writer) = near.split();
    let (mut far_reader, mut far_writer) = far.split();
    async move {
        let flow = permit.flow();
        let ended = {
            let up = pump(
                &mut near_reader,
                &mut far_writer,
                &flow.bytes_up,
                Side::Near,
            );
            let down = pump(
                &mut far_reader,
                &mut near_writer,
                &flow.bytes_down,
                Side::Far,
            );
            tokio::select! {
                biased; // a permit that is gone stops the flow even while bytes move
                reason = permit.revoked() => Err(reason),
                ended = try_join(up, down) => ended,
            }
        };
        // What is still on its way belongs to the flow: it is not done before the other agent has it.
        let ended = match ended {
            Ok(_) => tokio::select! {
                biased; // as above
                reason = permit.revoked() => Err(reason),
                settled = try_join(near_writer.settled(), far_writer.settled()) => settled,
            },
            Err(reason) => Err(reason),
        };
        let Err(reason) = ended else {
            near_reader.done();
            far_reader.done();
            return (Reason::Done, permit);
        };
        near_reader.stop(reason);
        near_writer.reset(reason);
        far_reader.stop(reason);
        far_writer.reset(reason);
        (reason, permit)
    }
}

#[derive(Clone, Copy)]
enum Side {
    Near,
    Far,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Near => Self::Far,
            Self::Far => Self::Near,
        }
    }

    /// Sockets of programs say only «reset»; which side that was, is known here.
    fn named(self, reason: Reason) -> Reason {
        match (self, reason) {
            (Self::Far, Reason::NearReset) => Reason::FarReset,
            (_, reason) => reason,
        }
    }
}

async fn pump(
    reader: &mut Reader,
    writer: &mut Writer,
    bytes: &AtomicU64,
    from: Side,
) -> Result<(), Reason> {
    while let Some(chunk) = reader.read().await.map_err(|reason| from.named(reason))? {
        bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        writer
            .write(chunk)
            .await
            .map_err(|reason| from.other().named(reason))?;
    }
    writer
        .finish()
        .await
        .map_err(|reason| from.other().named(reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_output<F>(_: impl Fn(Io, Io, Permit) -> F) -> usize {
        size_of::<F>()
    }

    // What every flow keeps for as long as it lives, at each node (issue 2: an idle stream is small).
    #[test]
    fn the_future_of_a_flow_is_small() {
        let size = size_of_output(carry);
        assert!(size <= 2_048, "{size} bytes");
    }
}
