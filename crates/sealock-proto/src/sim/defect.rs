//! Defects of drivers that tests can plant, to prove that the simulator would find them.

/// A rule that a driver breaks; the numbers are those of lessons.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Defect {
    /// 02: a leg that comes while the window runs out is taken by nobody, and its opener waits.
    ExpiryTakesLeg,
    /// 03: a stream that the provider does not know any more is shown as one that ended well.
    LostAsDone,
    /// 04: the provider takes a leg without looking at its proof.
    TicketUnchecked,
    /// 09: a leg that was taken after parking is not recorded as the stream's leg.
    LegNotRecorded,
    /// 10: an agent takes up one stream after another, each waiting for its answer.
    OneAfterAnother,
    /// 11: there is no bound on parked streams.
    ParkedUnbounded,
    /// 17: policy is judged at the first leg alone.
    PolicyOnce,
    /// 17: a change of policy does not touch live streams.
    LiveNotCut,
    /// 19: the place of a stream that ended while parked is never given back.
    PlaceLeaks,
    /// What an older leg still delivers is handed over as if it came on the newest one.
    EpochUnfenced,
    /// A refused leg leaves no trace in the audit.
    RefusalUnaudited,
    /// The end of an agent's old session takes away what its new one has registered.
    FreshSessionRemoved,
    /// A relay numbers the sessions of all tenants together, and says the number.
    NumbersShared,
    /// A relay finds a provider by the name of its service, whoever the caller's tenant is.
    TenantsMixed,
    /// A relay does not look at when the certificate behind a session ends.
    CertificateUnchecked,
    /// An agent's timers follow its wall clock.
    TimersByWall,
    /// A leg that failed is dialled again at once, for ever.
    NoBackOff,
}
