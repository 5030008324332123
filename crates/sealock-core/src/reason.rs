//! Why a flow ended or never began: one closed, coded list.
//!
//! The same list is used on the wire (QUIC application error codes and refusal frames), in access records, audit
//! rows, metrics, the command line's exit codes and the answers of front doors. Each reason has one line in the
//! reference and is produced by at least one test. Deliberately absent: free text; what happened beside the code
//! belongs in a log line of the side that saw it, because a peer must not learn our internals.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whose side a flow failed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Nobody: the flow ended as its application wished.
    None,
    /// The side that the flow came from.
    Near,
    /// The side that the flow went to.
    Far,
    /// The rules of the tenant.
    Policy,
    /// Sealock itself: a limit, a lost link, a defect.
    Us,
}

/// What a command prints and returns for a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Exit code 0.
    Success,
    /// Exit code 1.
    Failed,
    /// Exit code 3: policy said no.
    Refused,
    /// Exit code 4: somebody could not be reached.
    Unreachable,
}

macro_rules! reasons {
    ($( $number:literal $variant:ident $code:literal $fault:ident $outcome:ident $transient:literal $text:literal $hint:literal; )*) => {
        /// Why a flow ended or never began.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "SCREAMING_SNAKE_CASE")]
        pub enum Reason {
            $( #[doc = $text] $variant, )*
        }

        impl Reason {
            /// Every reason, in the order of the reference page.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The number on the wire. Numbers are never used again for another meaning.
            #[must_use]
            pub const fn number(self) -> u32 {
                match self { $(Self::$variant => $number,)* }
            }

            /// The reason that a peer sent as a number; a number from a newer peer is `Unknown`.
            #[must_use]
            pub const fn from_number(number: u64) -> Self {
                match number { $($number => Self::$variant,)* _ => Self::Unknown }
            }

            /// The stable code that logs, audit rows, metrics and scripts use.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// Whose side the flow failed on.
            #[must_use]
            pub const fn fault(self) -> Fault {
                match self { $(Self::$variant => Fault::$fault,)* }
            }

            /// How a command that meets this reason ends.
            #[must_use]
            pub const fn outcome(self) -> Outcome {
                match self { $(Self::$variant => Outcome::$outcome,)* }
            }

            /// Whether the same attempt may succeed later without anybody changing anything.
            #[must_use]
            pub const fn is_transient(self) -> bool {
                match self { $(Self::$variant => $transient,)* }
            }

            /// One sentence for people.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// What to do next, or an empty text when there is nothing to do.
            #[must_use]
            pub const fn hint(self) -> &'static str {
                match self { $(Self::$variant => $hint,)* }
            }
        }
    };
}

reasons! {
    0x00 Done "DONE" None Success false
        "both directions ended cleanly" "";
    0x01 NearReset "NEAR_RESET" Near Failed true
        "the side that opened the flow reset it" "";
    0x02 FarReset "FAR_RESET" Far Failed true
        "the side that served the flow reset it" "look into the log of the service";
    0x03 Cancelled "CANCELLED" Near Failed true
        "the opening was cancelled before it finished" "";
    0x10 PolicyDenied "POLICY_DENIED" Policy Refused false
        "no rule allows this" "`sealock why CALLER SERVICE` names the rule; `sealock policy allow CALLER SERVICE` adds one";
    0x11 PolicyRevoked "POLICY_REVOKED" Policy Refused false
        "a change of policy took the permit back" "`sealock why CALLER SERVICE` names the rule";
    0x12 IdentityRevoked "IDENTITY_REVOKED" Policy Refused false
        "the agent's identity was revoked" "make a new token with `sealock token create` and join again";
    0x13 NoPolicy "NO_POLICY" Policy Refused true
        "this hop has no policy yet, so nothing is allowed" "check that the controller was reachable once: `sealock status`";
    0x14 PolicyStale "POLICY_STALE" Policy Refused true
        "this hop's policy is older than it may be" "bring the controller back: `sealock status` names it";
    0x20 NoSuchService "NO_SUCH_SERVICE" Near Failed false
        "no service of this name exists in the tenant" "`sealock service list` shows the names";
    0x21 NoProvider "NO_PROVIDER" Far Unreachable true
        "the service exists, but none of its providers is connected" "start the agent that exposes it: `sealock agent`";
    0x22 TargetRefused "TARGET_REFUSED" Far Failed true
        "the program behind the service refused the connection" "is it listening? the provider's `sealock status` names the target";
    0x23 TargetUnreachable "TARGET_UNREACHABLE" Far Unreachable true
        "the program behind the service cannot be reached" "the provider's `sealock status` names the target";
    0x24 TargetTimeout "TARGET_TIMEOUT" Far Unreachable true
        "the program behind the service did not answer in time" "the provider's `sealock status` names the target";
    0x25 PeerRefused "PEER_REFUSED" Far Refused false
        "the provider does not serve this name" "`sealock status` on the provider lists what it exposes";
    0x30 RelayUnreachable "RELAY_UNREACHABLE" Us Unreachable true
        "no relay can be reached" "is UDP or TCP to the relay's address open? `sealock status` names it";
    0x31 SessionLost "SESSION_LOST" Us Unreachable true
        "the session to the relay was lost" "";
    0x32 PeerLost "PEER_LOST" Far Unreachable true
        "the other agent went away" "";
    0x33 Draining "DRAINING" Us Unreachable true
        "this node is shutting down and takes no new flows" "try again: another relay takes over";
    0x34 OpenTimeout "OPEN_TIMEOUT" Us Unreachable true
        "nobody answered the open in time" "";
    0x35 Superseded "SUPERSEDED" Us Failed false
        "a newer session of the same agent took over" "two machines use one identity: join the second with a token of its own";
    0x36 ResumeExpired "RESUME_EXPIRED" Us Failed true
        "the stream could not be taken up again in time" "";
    0x37 AttachRefused "ATTACH_REFUSED" Near Refused false
        "the proof for taking the stream up again is wrong or used up" "";
    0x40 Overloaded "OVERLOADED" Us Failed true
        "a limit of this node was reached" "try again later, or raise the limit it names in its log";
    0x41 QuotaExceeded "QUOTA_EXCEEDED" Policy Refused true
        "the caller's quota is used up" "close flows, or ask for a higher quota";
    0x42 StreamInUse "STREAM_IN_USE" Near Failed false
        "a stream with this id is already live" "";
    0x50 ProtocolViolation "PROTOCOL_VIOLATION" Us Failed false
        "the peer sent what the protocol does not allow" "are both sides of one version? `sealock version`";
    0x51 VersionUnsupported "VERSION_UNSUPPORTED" Us Failed false
        "the peer speaks a version of the protocol that this one does not" "upgrade the older side: `sealock version`";
    0x52 Integrity "INTEGRITY" Us Failed false
        "end-to-end encryption found altered, missing or repeated bytes" "something on the way changes traffic; the relay cannot be trusted";
    0x53 Truncated "TRUNCATED" Us Failed true
        "the stream ended without its end-to-end end mark" "";
    0x54 PeerNotAuthentic "PEER_NOT_AUTHENTIC" Us Failed false
        "the other side could not prove the expected identity" "the relay may be hostile, or the registry is being changed; try again";
    0x55 HandshakeTimeout "HANDSHAKE_TIMEOUT" Us Unreachable true
        "the other side did not finish its handshake in time" "";
    0x60 TokenInvalid "TOKEN_INVALID" Near Failed false
        "the join token is unknown, expired or used" "make a new one with `sealock token create`";
    0x61 NotAdmitted "NOT_ADMITTED" Near Refused false
        "the certificate was not accepted" "join again with a new token, and check both clocks";
    0x62 ControllerUnreachable "CONTROLLER_UNREACHABLE" Us Unreachable true
        "the controller cannot be reached" "known services keep working; new joins wait for the controller";
    0x63 NameTaken "NAME_TAKEN" Near Refused false
        "another agent provides a service of this name" "choose another name, or let this agent provide it: `sealock policy allow AGENT NAME --provide`";
    0x7e Internal "INTERNAL" Us Failed false
        "a defect in Sealock ended the flow" "please report it with the log lines around this flow";
    0x7f Unknown "UNKNOWN" Us Failed false
        "the peer gave a reason that this version does not know" "are both sides of one version? `sealock version`";
}

impl Reason {
    /// The exit code of a command that ends with this reason: 0, 1 failed, 3 refused by policy, 4 unreachable.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self.outcome() {
            Outcome::Success => 0,
            Outcome::Failed => 1,
            Outcome::Refused => 3,
            Outcome::Unreachable => 4,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.code())
    }
}

/// A reason is also an error, so that it can ride inside an `io::Error` through readers and writers.
impl std::error::Error for Reason {}

impl From<Reason> for std::io::Error {
    fn from(reason: Reason) -> Self {
        Self::other(reason)
    }
}

impl Reason {
    /// The reason that an `io::Error` carries, when it came from our own streams.
    #[must_use]
    pub fn carried_by(error: &std::io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref::<Self>().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn numbers_and_codes_are_unique_and_numbers_round_trip() {
        let numbers: BTreeSet<u32> = Reason::ALL.iter().map(|reason| reason.number()).collect();
        let codes: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        assert_eq!(
            (numbers.len(), codes.len()),
            (Reason::ALL.len(), Reason::ALL.len())
        );
        for &reason in Reason::ALL {
            assert_eq!(Reason::from_number(reason.number().into()), reason);
            let json = serde_json::to_value(reason).expect("a code is plain text");
            assert_eq!(json, reason.code());
        }
    }

    #[test]
    fn a_number_from_a_newer_peer_is_unknown_and_never_clean() {
        for number in [0x7fff_ffff, u64::MAX, 0x100] {
            assert_eq!(Reason::from_number(number), Reason::Unknown);
        }
    }

    #[test]
    fn rides_inside_an_io_error() {
        let error = std::io::Error::from(Reason::PolicyRevoked);
        assert_eq!(Reason::carried_by(&error), Some(Reason::PolicyRevoked));
        assert_eq!(Reason::carried_by(&std::io::Error::other("else")), None);
    }
}
