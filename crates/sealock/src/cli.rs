//! The command line: every verb and flag with the words of its help.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sealock_core::address::{HostPort, Target};
use sealock_core::check::{Check, Interval, Patience, Probe, Threshold};
use sealock_core::choice::Weight;
use sealock_core::config::Flag;
use sealock_core::config::unit::Span;
use sealock_core::destination::Destination;
use sealock_core::name::{AgentName, GroupName, ServiceName};
use sealock_core::policy::{CallerPattern, DestinationPattern, Label, RuleId, ServicePattern};
use sealock_core::route::Way;

use crate::settings::flag;

/// Connects programs that cannot reach each other, through a relay that sees ciphertext only.
#[derive(Debug, Parser)]
#[command(
    name = "sealock",
    version,
    propagate_version = false,
    arg_required_else_help = true,
    after_help = "Start on a public machine with `sealock up`; it prints what to type on the others."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What every verb takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Common options")]
pub(crate) struct Common {
    /// The directory of keys, certificates and databases
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) state: Option<String>,
    /// The configuration file
    #[arg(long, global = true, value_name = "FILE", env = "SEALOCK_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// The least urgent log lines that are written: error, warn, info, debug, trace
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// How log lines look: text, json
    #[arg(long, global = true, value_name = "FORMAT")]
    pub(crate) log_format: Option<String>,
}

impl Common {
    /// The options that these flags set.
    pub(crate) fn flags(&self) -> impl Iterator<Item = Flag> {
        [
            flag("--state", "state.dir", self.state.as_ref()),
            flag("--log-level", "log.level", self.log_level.as_ref()),
            flag("--log-format", "log.format", self.log_format.as_ref()),
        ]
        .into_iter()
        .flatten()
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// See it work: everything on this machine, offline, gone afterwards
    Demo(Demo),
    /// Run the public side: controller and relay in one process
    Up(Up),
    /// Let this machine in, with a token of `sealock token create`
    Join(Join),
    /// Offer a local program to others as a service
    Expose(Expose),
    /// Reach a service of another machine
    Connect(Connect),
    /// Run a program in a fence: what it may reach is said here, and nothing else can be
    Run(Run),
    /// Show what runs on this machine and what it is connected to
    Status(Json),
    /// Try which methods of capture this machine allows
    Doctor(Json),
    /// Run the agent of this machine, or see and end agents
    Agent(Agent),
    /// Run a relay
    Relay(Relay),
    /// Run the controller
    Controller(Controller),
    /// Make join tokens
    #[command(subcommand)]
    Token(TokenVerb),
    /// See and change who may open what
    #[command(subcommand)]
    Policy(PolicyVerb),
    /// See and remove services
    #[command(subcommand)]
    Service(ServiceVerb),
    /// See what was decided and done
    Audit(Audit),
    /// Explain whether a caller may open a service, and because of which rule
    Why(Why),
    /// Check and explain the configuration
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Print the completions of a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version(Json),
    /// The process inside of a fence, which `run` and `doctor` start
    #[command(hide = true)]
    Inside(Inside),
    /// End with 0 when the role of this state directory can do its work
    #[command(hide = true)]
    Ready,
}

/// The form of a listing.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Json {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `sealock demo`.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Keep everything running at the end, until Ctrl-C
    #[arg(long)]
    pub(crate) stay: bool,
}

/// Flags of `sealock up`.
#[derive(Debug, Args)]
pub(crate) struct Up {
    /// The address, of UDP and TCP, at which agents reach the relay [default: 0.0.0.0:7443]
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen: Option<String>,
    /// An address of this machine as agents see it; may be repeated
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) public: Vec<String>,
    /// The TCP address of the controller; only relays on other machines need it [default: 127.0.0.1:7444]
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) controller_listen: Option<String>,
    /// Begin without the rule that lets agents open each other's services
    #[arg(long)]
    pub(crate) closed: bool,
}

/// Flags of `sealock join`.
#[derive(Debug, Args)]
pub(crate) struct Join {
    /// The token, or `-` to read it from standard input
    #[arg(env = "SEALOCK_TOKEN", hide_env_values = true)]
    pub(crate) token: String,
    /// The name of this machine [default: the token's, or the host name]
    #[arg(long)]
    pub(crate) name: Option<AgentName>,
    /// Replace the identity that this machine has
    #[arg(long)]
    pub(crate) force: bool,
}

/// Flags of `sealock expose`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Expose {
    /// The program: PORT (of 127.0.0.1), HOST:PORT or unix:/path
    pub(crate) target: Target,
    /// The service's name
    #[arg(long = "as", value_name = "NAME")]
    pub(crate) name: ServiceName,
    /// What rules may know of it; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub(crate) labels: Vec<Label>,
    /// Offer it only while a check passes: tcp, http:/path (answers 2xx) or "command:PROGRAM ARGUMENTS" (ends with 0)
    #[arg(long, value_name = "CHECK")]
    pub(crate) check: Option<Probe>,
    /// Between two tries of the check [default: 5s]
    #[arg(long, value_name = "DURATION", requires = "check")]
    pub(crate) check_interval: Option<Interval>,
    /// How long one try may take [default: 2s]
    #[arg(long, value_name = "DURATION", requires = "check")]
    pub(crate) check_timeout: Option<Patience>,
    /// How many passes in a row bring it back [default: 2]
    #[arg(long, value_name = "COUNT", requires = "check")]
    pub(crate) check_rise: Option<Threshold>,
    /// How many failures in a row take it back [default: 3]
    #[arg(long, value_name = "COUNT", requires = "check")]
    pub(crate) check_fall: Option<Threshold>,
    /// Its share of the flows beside other providers of the service, 1 to 256
    #[arg(long, value_name = "NUMBER", default_value_t)]
    pub(crate) weight: Weight,
    /// Serve only while no provider without this flag is left
    #[arg(long)]
    pub(crate) standby: bool,
    /// Give a caller the same provider each time, while that one is well (said by the service's owner)
    #[arg(long)]
    pub(crate) sticky: bool,
    /// Leave it to the running agent and return
    #[arg(long)]
    pub(crate) detach: bool,
}

impl Expose {
    /// The check that the flags ask for.
    pub(crate) fn check(&self) -> Option<Check> {
        let usual = Check::new(self.check.clone()?);
        let (interval, timeout) = (self.check_interval, self.check_timeout);
        Some(Check {
            interval: interval.map_or(usual.interval, Interval::duration),
            timeout: timeout.map_or(usual.timeout, Patience::duration),
            rise: self.check_rise.map_or(usual.rise, Threshold::number),
            fall: self.check_fall.map_or(usual.fall, Threshold::number),
            ..usual
        })
    }
}

/// Flags of `sealock connect`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("where").required(true).args(["listen", "stdio"]))]
pub(crate) struct Connect {
    /// The service's name
    pub(crate) name: ServiceName,
    /// Where programs of this machine reach it: PORT (of 127.0.0.1), HOST:PORT or unix:/path
    #[arg(long, value_name = "[HOST:]PORT")]
    pub(crate) listen: Option<Target>,
    /// Carry standard input and output, as ssh's ProxyCommand wants it
    #[arg(long)]
    pub(crate) stdio: bool,
    /// Leave it to the running agent and return
    #[arg(long, conflicts_with = "stdio")]
    pub(crate) detach: bool,
}

/// Flags of `sealock run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// What it may reach: HOST or HOST:PORT, where HOST is a name, `*.name`, an address or a network; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub(crate) allow: Vec<DestinationPattern>,
    /// How it is reached: direct, socks5://HOST:PORT, http://HOST:PORT, unix:/PATH or refuse; may be repeated, the next one
    /// is tried when one fails
    #[arg(long, value_name = "WAY")]
    pub(crate) via: Vec<Way>,
    /// A file of rules about destinations, in the form that `sealock policy` knows
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Option<PathBuf>,
    /// Print a line for each connection, also for those that are allowed
    #[arg(long)]
    pub(crate) verbose: bool,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// Words that only this program says to itself.
#[derive(Debug, Args)]
pub(crate) struct Inside {
    /// The descriptor of the channel to the process outside; without it, methods are tried
    pub(crate) channel: Option<i32>,
    /// The method of capture
    #[arg(requires = "channel")]
    pub(crate) method: Option<String>,
    /// The program and its arguments
    #[arg(last = true)]
    pub(crate) command: Vec<OsString>,
}

/// `sealock agent` runs the role; its subcommands ask the controller.
#[derive(Debug, Args)]
pub(crate) struct Agent {
    #[command(subcommand)]
    pub(crate) verb: Option<AgentVerb>,
}

/// What can be asked of the controller about agents.
#[derive(Debug, Subcommand)]
pub(crate) enum AgentVerb {
    /// List the agents that joined
    List(Json),
    /// End an agent's identity, its services and its live connections
    Revoke {
        /// The agent
        name: AgentName,
    },
}

/// Flags of `sealock relay`.
#[derive(Debug, Args)]
pub(crate) struct Relay {
    #[command(subcommand)]
    pub(crate) verb: Option<RelayVerb>,
    /// The token of `sealock token create --role relay`, at the first start
    #[arg(long, env = "SEALOCK_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// The relay's name [default: the token's, or the host name]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The address, of UDP and TCP, at which agents reach it [default: 0.0.0.0:7443]
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen: Option<String>,
    /// An address of this machine as agents see it; may be repeated
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) advertise: Vec<String>,
    /// The controller [default: the one that it joined]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) controller: Option<String>,
}

/// What can be asked of the controller about relays.
#[derive(Debug, Subcommand)]
pub(crate) enum RelayVerb {
    /// List the relays that joined
    List(Json),
}

/// Flags of `sealock controller`.
#[derive(Debug, Args)]
pub(crate) struct Controller {
    /// The TCP address at which relays reach it [default: 0.0.0.0:7444]
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen: Option<String>,
    /// An address of this machine as relays see it; may be repeated
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) advertise: Vec<String>,
    /// Begin without the rule that lets agents open each other's services
    #[arg(long)]
    pub(crate) closed: bool,
}

/// Verbs of `sealock token`.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenVerb {
    /// Make a token that lets one machine in, once
    Create(TokenCreate),
}

/// The life of a token: 10 seconds to 7 days, as the controller allows.
pub(crate) type Ttl = Span<10, { 7 * 24 * 3_600 }>;

/// Which role a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TokenRole {
    /// A machine with programs
    Agent,
    /// Another relay
    Relay,
}

/// Flags of `sealock token create`.
#[derive(Debug, Args)]
pub(crate) struct TokenCreate {
    /// What the machine will be
    #[arg(long, value_enum, default_value_t = TokenRole::Agent)]
    pub(crate) role: TokenRole,
    /// The only name that it may take
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// How long the token waits for its machine, such as 15m [default: 15m]
    #[arg(long, value_name = "TIME")]
    pub(crate) ttl: Option<Ttl>,
    /// What rules may know of the agent; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub(crate) labels: Vec<Label>,
    /// A group of the agent; may be repeated
    #[arg(long = "group", value_name = "GROUP")]
    pub(crate) groups: Vec<GroupName>,
    /// Where the machine goes first [default: the known relays]; may be repeated
    #[arg(long = "address", value_name = "HOST:PORT")]
    pub(crate) addresses: Vec<HostPort>,
    #[command(flatten)]
    pub(crate) form: Json,
}

/// Verbs of `sealock policy`.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyVerb {
    /// Add a rule that allows
    Allow(Rule),
    /// Add a rule that denies; deny beats allow
    Deny(Rule),
    /// List the rules
    List(Json),
    /// Remove a rule
    Remove {
        /// The rule's id, as `sealock policy list` shows it
        id: RuleId,
    },
    /// Replace the rules that came from a file by those of this one
    Apply {
        /// The policy file
        file: PathBuf,
        /// Only say what would change
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        form: Json,
    },
    /// Run the [[test]] cases of a policy file; needs no controller
    Test {
        /// The policy file
        file: PathBuf,
        #[command(flatten)]
        form: Json,
    },
}

/// A rule on the command line.
#[derive(Debug, Args)]
pub(crate) struct Rule {
    /// Who: an agent's name, a pattern such as `web-*`, `group:NAME`, `label:KEY=VALUE`, or `*`
    pub(crate) caller: CallerPattern,
    /// What: a service's name, a pattern such as `db.*`, `label:KEY=VALUE`, or `*`
    #[arg(required_unless_present = "to")]
    pub(crate) service: Option<ServicePattern>,
    /// A place outside that the caller's workload may reach: `api.example.com:443`, `*.example.com`, `10.0.0.0/8:5432`
    #[arg(long, value_name = "DESTINATION", conflicts_with = "provide")]
    pub(crate) to: Vec<DestinationPattern>,
    /// Speak of providing the service, not of opening it
    #[arg(long)]
    pub(crate) provide: bool,
    /// When the rule ends: a time such as 2027-01-31T12:00:00Z, or from now on, such as 8h
    #[arg(long, value_name = "WHEN")]
    pub(crate) expires: Option<String>,
    /// The rule's id [default: made of its content]
    #[arg(long)]
    pub(crate) id: Option<RuleId>,
}

/// Verbs of `sealock service`.
#[derive(Debug, Subcommand)]
pub(crate) enum ServiceVerb {
    /// List the services and who provides them
    List(Json),
    /// Take a service, or one agent's part in it, away; its name is free again
    Remove {
        /// The service
        name: ServiceName,
        /// Only this agent's part
        #[arg(long)]
        agent: Option<AgentName>,
    },
}

/// `sealock audit` lists; its subcommand verifies.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Audit {
    #[command(subcommand)]
    pub(crate) verb: Option<AuditVerb>,
    /// At most this many rows
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub(crate) limit: u32,
    /// Only rows before this number
    #[arg(long, value_name = "NUMBER")]
    pub(crate) before: Option<u64>,
    /// Only rows since then: a time, or so long ago, such as 2h
    #[arg(long, value_name = "WHEN")]
    pub(crate) since: Option<String>,
    /// Only what this one did
    #[arg(long)]
    pub(crate) actor: Option<String>,
    /// Only this action, or all that begin with it, such as `policy`
    #[arg(long)]
    pub(crate) action: Option<String>,
    /// The rows of relays and refused joins, which belong to no tenant
    #[arg(long)]
    pub(crate) deployment: bool,
    #[command(flatten)]
    pub(crate) form: Json,
}

/// Verbs of `sealock audit`.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditVerb {
    /// Recompute the chain over all rows
    Verify {
        /// The chain of relays and refused joins
        #[arg(long)]
        deployment: bool,
        #[command(flatten)]
        form: Json,
    },
}

/// Flags of `sealock why`.
#[derive(Debug, Args)]
pub(crate) struct Why {
    /// The agent that wants it
    pub(crate) caller: AgentName,
    /// The service
    #[arg(required_unless_present = "to", conflicts_with = "to")]
    pub(crate) service: Option<ServiceName>,
    /// A place outside, such as `api.example.com:443`
    #[arg(long, value_name = "DESTINATION", conflicts_with = "provide")]
    pub(crate) to: Option<Destination>,
    /// Ask about providing the service, not about opening it
    #[arg(long)]
    pub(crate) provide: bool,
    #[command(flatten)]
    pub(crate) form: Json,
}

/// Verbs of `sealock config`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Say whether file, environment and flags are right
    Check,
    /// Print each option, its value, where that came from and what it does
    Explain(Json),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
