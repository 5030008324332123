//! `sealock join`: a token becomes the identity of this machine.

use std::io::Read;

use anyhow::Context;
use jiff::Timestamp;
use sealock_core::address::HostPort;
use sealock_core::reason::Reason;
use sealock_core::token::JoinToken;
use sealock_net::identity::IdentityDir;
use sealock_net::join::{self, JoinError, Naming};
use sealock_net::unix::UnixClient;

use crate::cli::{Common, Join};
use crate::failure::Failure;
use crate::print;
use crate::settings::{self, Kind, Places};

const NEW_TOKEN: &str = "make a new token with `sealock token create` on the controller's machine";
/// More than any token has.
const STDIN_LIMIT: u64 = 4_096;

pub(crate) async fn run(common: &Common, flags: Join) -> anyhow::Result<()> {
    let config = settings::load(common, Kind::Client, [])?;
    let token = read_token(&flags.token)?;
    let places = Places::of(&config);
    let dir = IdentityDir::open(places.agent())?;
    if !flags.force {
        refuse_joined(&dir)?;
    }
    refuse_running(&places).await?;
    let ways = settings::ways(&config)?;
    let naming = naming(flags.name.or(config.agent.name).as_ref());
    let id = join::join_agent(&token, naming, &dir, &ways).await;
    let id = id.map_err(|error| explain(error, &token))?;
    forget_views(&dir)?;
    places.keep_relays(&token.addresses)?;
    let name = id.principal.as_agent().map(|agent| agent.name.to_string());
    let name = name.unwrap_or_else(|| id.to_string());
    print::line(&format!("This machine joined as `{name}`. Next:"));
    print::line("  sealock expose 3000 --as web                   offer what listens at port 3000");
    print::line(
        "  sealock connect web --listen 127.0.0.1:8080    reach a service of another machine",
    );
    Ok(())
}

/// Reads a token from an argument, or from standard input.
pub(crate) fn read_token(text: &str) -> anyhow::Result<JoinToken> {
    let mut from_input = String::new();
    let text = if text == "-" {
        let mut input = std::io::stdin().lock().take(STDIN_LIMIT);
        input
            .read_to_string(&mut from_input)
            .context("reading the token from standard input")?;
        from_input.as_str()
    } else {
        text
    };
    text.parse()
        .map_err(|error: sealock_core::token::TokenError| {
            Failure::usage(error.to_string()).hint(NEW_TOKEN).into()
        })
}

fn refuse_joined(dir: &IdentityDir) -> anyhow::Result<()> {
    let Some(svid) = dir.load_svid()? else {
        return Ok(());
    };
    if svid.leaf().not_after <= Timestamp::now() {
        return Ok(());
    }
    let text = format!("this machine joined already, as {}", svid.id());
    let hint = "to give it another identity, add --force; for a second agent, --state DIR";
    Err(Failure::new(text).hint(hint).into())
}

/// A running agent would go on with the old identity, and write it back at its next renewal.
async fn refuse_running(places: &Places) -> anyhow::Result<()> {
    use sealock_core::api::local::{Status, StatusRequest};
    let client = UnixClient::new(places.agent_socket());
    if client.call::<Status>(&StatusRequest {}).await.is_err() {
        return Ok(());
    }
    let text = "an agent is running with the present identity";
    Err(Failure::new(text).hint("stop it first").into())
}

/// The views of another deployment are of no use, and were signed by others.
pub(crate) fn forget_views(dir: &IdentityDir) -> anyhow::Result<()> {
    let views = dir.path().join("views");
    match std::fs::remove_dir_all(&views) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("removing {}", views.display())),
    }
}

/// What this machine wants to be called: as somebody said, else as the token says, else what it is called anyway.
pub(crate) fn naming(asked: Option<&impl ToString>) -> Naming {
    Naming {
        asked: asked.map(ToString::to_string),
        own: host_name(),
    }
}

/// The machine's name in the form that names have: lower case, one label, hyphens for the rest.
fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    canonical(&name)
}

/// The first label of a host name as a name of ours, when anything of it is left.
fn canonical(host: &str) -> Option<String> {
    let label = host.trim().split('.').next().unwrap_or_default();
    let mapped: String = label
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .take(63) // RFC 1035 §2.3.4
        .collect();
    let name = mapped.trim_matches('-');
    (!name.is_empty()).then(|| name.to_owned())
}

fn explain(error: JoinError, token: &JoinToken) -> anyhow::Error {
    let reason = error.reason();
    let failure = match (&error, reason) {
        (JoinError::WrongRole { token, .. }, _) => {
            let failure = Failure::usage(format!("this token lets in a {token}, not an agent"));
            let hint = "a relay's token is used with `sealock relay --token SLK1-…`";
            return failure.hint(hint).into();
        }
        (JoinError::Refused(_), Reason::NameTaken) => {
            let failure = Failure::new("another agent has this name already");
            return failure.hint("choose another with --name NAME").into();
        }
        (JoinError::Refused(_), Reason::TokenInvalid) => {
            return Failure::of(reason).hint(NEW_TOKEN).into();
        }
        (JoinError::Refused(_), _) => return Failure::of(reason).into(),
        (JoinError::NoRelay(_), _) => return nobody_answers(token).into(),
        (JoinError::Unreachable(_), _) => {
            let addresses = print::list(&token.addresses);
            let text =
                format!("the relay at {addresses} answers, the controller behind it does not");
            let hint = "is the controller running? try again when it is";
            Failure::of(reason).about(text).hint(hint)
        }
        (
            JoinError::Socket(_) | JoinError::Key(_) | JoinError::Issued(_) | JoinError::Keep(_),
            _,
        ) => {
            return error.into();
        }
    };
    anyhow::Error::from(error).context(failure)
}

/// That there was no relay says all; each way to it has failed in words of its own.
fn nobody_answers(token: &JoinToken) -> Failure {
    let failure = Failure::of(Reason::RelayUnreachable);
    let failure = failure.about(format!(
        "nobody answers at {}",
        print::list(&token.addresses)
    ));
    if token.addresses.iter().all(is_loopback) {
        return failure.hint(
            "is `sealock up` running? this address is the machine's own: if it runs on another one, start it there \
             with --public HOST, and use the token that it prints then",
        );
    }
    failure.hint("is `sealock up` running there, and may this machine send UDP or TCP to it?")
}

/// Whether an address leads nowhere but to the machine that uses it.
pub(crate) fn is_loopback(address: &HostPort) -> bool {
    let socket = address.as_socket_addr();
    socket.is_some_and(|socket| socket.ip().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_becomes_a_name_or_nothing() {
        for (host, name) in [
            ("Laptop-1.local\n", Some("laptop-1")),
            ("my_machine", Some("my-machine")),
            ("-x-", Some("x")),
            ("___", None),
            ("", None),
        ] {
            assert_eq!(canonical(host).as_deref(), name, "{host}");
        }
    }
}
