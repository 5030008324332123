//! Defects of earlier systems that tests can plant, to prove that the simulator would find them.
//!
//! Outside unit tests [`bug!`] is the constant `false` and nothing of this exists.

#[cfg(test)]
use std::cell::Cell;

/// A defect from lessons.md.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    /// 01: bytes of an older leg are read too, in the order of their arrival.
    TwoReaders,
    /// 03: an abnormal end is shown as a clean one.
    ErrorAsFin,
    /// 05: a new leg goes on where the old one was, so what was in flight is lost.
    NoRetransmit,
    /// 06: bytes are counted when the next ones are sent, so a resume in between sees the old count.
    LateCount,
    /// 07: whatever the peer acknowledges is believed.
    AckUnbounded,
    /// 08: a full buffer forgets its oldest bytes.
    Evict,
    /// 09: the second resume is not recorded.
    SecondResumeForgotten,
    /// 10: a leg is taken only when the stream's earlier business is done.
    AttachWaits,
}

#[cfg(test)]
const CANARY: Option<Bug> = if cfg!(sealock_canary) {
    Some(Bug::LateCount)
} else {
    None
};

#[cfg(test)]
thread_local! {
    // A build with this cfg has a defect from the start: the runs that pass elsewhere must fail there.
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(CANARY) };
}

#[cfg(test)]
pub(super) fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

#[cfg(test)]
pub(super) fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

macro_rules! bug {
    ($bug:ident) => {{
        #[cfg(test)]
        {
            $crate::stream::bug::is_planted($crate::stream::bug::Bug::$bug)
        }
        #[cfg(not(test))]
        {
            false
        }
    }};
}

pub(super) use bug;
