//! The values of options: each can be read from a text (environment, flags) and from a file.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use super::document::{Document, Item, Problem, Section};
use super::unit::{Count, Span};
use crate::address::{HostPort, Target};
use crate::check::{Check, Interval, Patience, Threshold};
use crate::choice::Weight;
use crate::name::{AgentName, NodeName, Region, ServiceName, TenantName, TrustDomain};
use crate::route::{Way, WayError};

/// What an option holds.
pub(crate) trait Value: Sized {
    /// Reads it from the environment or a flag.
    fn from_text(text: &str) -> Result<Self, String>;

    /// Reads it from a file; what is wrong is noted there.
    fn from_item(document: &mut Document<'_>, item: &Item<'_>, key: &str) -> Option<Self> {
        let text = document.text(item, key)?;
        document.accept(Self::from_text(&text), item.span(), key)
    }

    /// Prints it so that it can be read again.
    fn show(&self) -> String;
}

macro_rules! plain_values {
    ($($type:ty),+ $(,)?) => {
        $(impl Value for $type {
            fn from_text(text: &str) -> Result<Self, String> {
                text.parse().map_err(|error: <Self as FromStr>::Err| error.to_string())
            }

            fn show(&self) -> String {
                self.to_string()
            }
        })+
    };
}

plain_values!(
    StateDir,
    LogFormat,
    LogLevel,
    AdminListen,
    TrustDomain,
    TenantName,
    NodeName,
    Region,
    AgentName,
    HostPort,
);

impl<const LEAST: u64, const MOST: u64> Value for Span<LEAST, MOST> {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|error: super::unit::UnitError| error.to_string())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl<const LEAST: u32, const MOST: u32> Value for Count<LEAST, MOST> {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|error: super::unit::UnitError| error.to_string())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for SocketAddr {
    fn from_text(text: &str) -> Result<Self, String> {
        let bad = |_| format!("`{}` is no IP:PORT", shown(text));
        text.parse().map_err(bad)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

fn shown(text: &str) -> String {
    let start: String = text.chars().take(80).collect();
    start.escape_default().to_string()
}

/// Why a text is not one of an option's values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Nothing was given.
    #[error("the path must not be empty")]
    EmptyPath,
    /// None of a few words.
    #[error("`{given}` is none of {known}")]
    Word {
        /// What was given.
        given: String,
        /// What there is.
        known: &'static str,
    },
    /// Not an address of this machine alone.
    #[error("`{0}` is neither `off` nor a loopback IP:PORT, such as `127.0.0.1:9100`")]
    NotLoopback(String),
    /// An address that others reach too.
    #[error(
        "`{0}` is reached from other machines: listen at a loopback address, or write `anywhere = true` into its table"
    )]
    Exposed(SocketAddr),
    /// A pair without its middle.
    #[error("`{given}` is no {wanted}")]
    Pair {
        /// What was given.
        given: String,
        /// What was wanted.
        wanted: &'static str,
    },
    /// One half of a pair.
    #[error("{0}")]
    Half(String),
}

/// The directory of keys, certificates and databases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir(pub PathBuf);

impl FromStr for StateDir {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text.is_empty() {
            return Err(ValueError::EmptyPath);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for StateDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

macro_rules! words {
    ($(#[$doc:meta])* $type:ident, $known:literal: $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $type { $($(#[$variant_doc])* $variant,)+ }

        impl $type {
            /// The word in files and on the command line.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl FromStr for $type {
            type Err = ValueError;

            fn from_str(text: &str) -> Result<Self, ValueError> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(ValueError::Word { given: shown(text), known: $known }),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words! {
    /// How log lines look.
    LogFormat, "text, json":
    /// For people.
    Text = "text",
    /// One JSON object a line.
    Json = "json"
}

words! {
    /// The least urgent log lines that are written.
    LogLevel, "error, warn, info, debug, trace":
    /// We stopped doing our work.
    Error = "error",
    /// Someone should look tomorrow.
    Warn = "warn",
    /// A state that a user would notice.
    Info = "info",
    /// A condition turned.
    Debug = "debug",
    /// Follows the code.
    Trace = "trace"
}

/// Where metrics and health are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminListen {
    /// Nowhere.
    Off,
    /// At this loopback address; they are not authenticated, so no other is accepted.
    At(SocketAddr),
}

impl FromStr for AdminListen {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == "off" {
            return Ok(Self::Off);
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::At(address)),
            Ok(_) | Err(_) => Err(ValueError::NotLoopback(shown(text))),
        }
    }
}

impl fmt::Display for AdminListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::At(address) => address.fmt(f),
        }
    }
}

words! {
    /// In which protocol a front door is spoken to.
    DoorKind, "socks5, http":
    /// SOCKS5.
    Socks5 = "socks5",
    /// HTTP: CONNECT, and requests to be forwarded.
    Http = "http"
}

/// Something of which an option holds several: comma-separated as a text, a list in a file.
pub(crate) trait Element: Value {
    /// What it is called in errors.
    const NOUN: &'static str;

    /// What is wanted of a list that may not be empty.
    const LIST: Option<&'static str> = None;

    /// What no other of the list may have too.
    fn unique(&self) -> String;
}

impl<T: Element> Value for Vec<T> {
    fn from_text(text: &str) -> Result<Self, String> {
        let mut all = Self::new();
        for part in text.split(',') {
            let one = T::from_text(part.trim())?;
            if all.iter().any(|it| it.unique() == one.unique()) {
                return Err(format!("{} `{}` is there twice", T::NOUN, one.unique()));
            }
            all.push(one);
        }
        Ok(all)
    }

    fn from_item(document: &mut Document<'_>, item: &Item<'_>, key: &str) -> Option<Self> {
        let Some(array) = item.get_ref().as_array() else {
            document.wrong_type(item, key, "a list");
            return None;
        };
        if let Some(wanted) = T::LIST
            && array.is_empty()
        {
            document.wrong_type(item, key, wanted);
            return None;
        }
        let mut lines: BTreeMap<String, usize> = BTreeMap::new();
        let mut all = Self::new();
        for item in array.iter() {
            let Some(one) = T::from_item(document, item, key) else {
                continue;
            };
            let line = document.line(item.span().start);
            if let Some(first) = lines.insert(one.unique(), line) {
                let problem = Problem::Duplicate {
                    what: T::NOUN,
                    name: one.unique(),
                    line: first,
                };
                document.report(item.span(), problem);
            }
            all.push(one);
        }
        Some(all)
    }

    fn show(&self) -> String {
        let all: Vec<String> = self.iter().map(Value::show).collect();
        all.join(",")
    }
}

impl Element for HostPort {
    const NOUN: &'static str = "address";

    fn unique(&self) -> String {
        self.to_string()
    }
}

/// A service that this agent provides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expose {
    /// The service's name.
    pub service: ServiceName,
    /// The program behind it.
    pub target: Target,
    /// What rules may know of it.
    pub labels: BTreeMap<String, String>,
    /// What tells whether the program is well: `check`, `check_interval`, `check_timeout`, `check_rise`, `check_fall`.
    pub check: Option<Check>,
    /// Its share of the service's flows, beside the weights of other providers.
    pub weight: Weight,
    /// Whether it serves only while no active provider is left.
    pub standby: bool,
    /// Whether a caller is to get the same provider each time; counts when this agent owns the service.
    pub sticky: bool,
}

impl Value for Expose {
    fn from_text(text: &str) -> Result<Self, String> {
        let (service, target) = pair(text, "SERVICE=TARGET, such as `web=127.0.0.1:3000`")
            .map_err(|error| error.to_string())?;
        Ok(Self {
            service,
            target,
            labels: BTreeMap::new(),
            check: None,
            weight: Weight::default(),
            standby: false,
            sticky: false,
        })
    }

    fn from_item(document: &mut Document<'_>, item: &Item<'_>, key: &str) -> Option<Self> {
        let section = section(document, item, key)?;
        section.only(document, &EXPOSE_KEYS, &[]);
        let service = section.need(document, "service");
        let service = service.and_then(|it| document.parsed(it, "service"));
        let target = section.need(document, "target");
        let target = target.and_then(|it| document.parsed(it, "target"));
        let labels = section.labels(document, "labels");
        let check = check(document, &section);
        let weight = section.get("weight");
        let weight = weight.and_then(|item| document.parsed(item, "weight"));
        let mut said = |key| {
            let item = section.get(key);
            item.and_then(|item| document.parsed(item, key))
        };
        let (standby, sticky) = (said("standby"), said("sticky"));
        Some(Self {
            service: service?,
            target: target?,
            labels,
            check,
            weight: weight.unwrap_or_default(),
            standby: standby.unwrap_or_default(),
            sticky: sticky.unwrap_or_default(),
        })
    }

    fn show(&self) -> String {
        format!("{}={}", self.service, self.target)
    }
}

impl Element for Expose {
    const NOUN: &'static str = "service";

    fn unique(&self) -> String {
        self.service.to_string()
    }
}

const EXPOSE_KEYS: [&str; 11] = [
    "service",
    "target",
    "labels",
    "check",
    "check_interval",
    "check_timeout",
    "check_rise",
    "check_fall",
    "weight",
    "standby",
    "sticky",
];

/// The check of an offer, where there is one; times without a check are noted as lacking it.
fn check(document: &mut Document<'_>, section: &Section<'_, '_>) -> Option<Check> {
    let details = EXPOSE_KEYS.iter().filter(|key| key.starts_with("check_"));
    let probe = if details.into_iter().any(|key| section.get(key).is_some()) {
        section.need(document, "check")
    } else {
        section.get("check")
    };
    let mut check = Check::new(document.parsed(probe?, "check")?);
    if let Some(item) = section.get("check_interval") {
        check.interval = document
            .parsed::<Interval>(item, "check_interval")?
            .duration();
    }
    if let Some(item) = section.get("check_timeout") {
        check.timeout = document
            .parsed::<Patience>(item, "check_timeout")?
            .duration();
    }
    if let Some(item) = section.get("check_rise") {
        check.rise = Threshold::from_item(document, item, "check_rise")?.number();
    }
    if let Some(item) = section.get("check_fall") {
        check.fall = Threshold::from_item(document, item, "check_fall")?.number();
    }
    Some(check)
}

/// A local port through which programs beside this agent open a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// The service's name.
    pub service: ServiceName,
    /// Where it listens.
    pub listen: SocketAddr,
}

impl Value for Connect {
    fn from_text(text: &str) -> Result<Self, String> {
        let (service, listen) = pair(text, "SERVICE=IP:PORT, such as `db=127.0.0.1:5432`")
            .map_err(|error| error.to_string())?;
        Ok(Self { service, listen })
    }

    fn from_item(document: &mut Document<'_>, item: &Item<'_>, key: &str) -> Option<Self> {
        let section = section(document, item, key)?;
        section.only(document, &["service", "listen"], &[]);
        let service = section.need(document, "service");
        let service = service.and_then(|it| document.parsed(it, "service"));
        let listen = section.need(document, "listen");
        let listen = listen.and_then(|it| SocketAddr::from_item(document, it, "listen"));
        Some(Self {
            service: service?,
            listen: listen?,
        })
    }

    fn show(&self) -> String {
        format!("{}={}", self.service, self.listen)
    }
}

impl Element for Connect {
    const NOUN: &'static str = "listen address";

    fn unique(&self) -> String {
        self.listen.to_string()
    }
}

/// A front door: where programs beside this agent say where they want to go.
#[derive(Debug, Clone)]
pub struct Door {
    /// In which protocol.
    pub kind: DoorKind,
    /// Where it listens: at a loopback address, unless `anywhere` says otherwise.
    pub listen: SocketAddr,
    /// By which ways its flows to places outside go, the first one first.
    pub ways: Vec<Way>,
    /// A file with the `USER:PASSWORD` that it asks for.
    pub login_file: Option<PathBuf>,
}

impl Door {
    fn checked(self, anywhere: bool) -> Result<Self, ValueError> {
        if self.listen.ip().is_loopback() || anywhere {
            return Ok(self);
        }
        Err(ValueError::Exposed(self.listen))
    }
}

impl Value for Door {
    fn from_text(text: &str) -> Result<Self, String> {
        let (kind, listen) = pair(text, "KIND=IP:PORT, such as `socks5=127.0.0.1:1080`")
            .map_err(|error| error.to_string())?;
        let door = Self {
            kind,
            listen,
            ways: vec![Way::Direct],
            login_file: None,
        };
        door.checked(false).map_err(|error| error.to_string())
    }

    fn from_item(document: &mut Document<'_>, item: &Item<'_>, key: &str) -> Option<Self> {
        const KEYS: [&str; 5] = ["kind", "listen", "ways", "login_file", "anywhere"];
        let section = section(document, item, key)?;
        section.only(document, &KEYS, &[]);
        let kind = section.need(document, "kind");
        let kind = kind.and_then(|it| document.parsed(it, "kind"));
        let listen = section.need(document, "listen");
        let listen = listen.and_then(|it| SocketAddr::from_item(document, it, "listen"));
        let ways = match section.get("ways") {
            Some(item) => Vec::from_item(document, item, "ways"),
            None => Some(vec![Way::Direct]),
        };
        let login_file = section.get("login_file");
        let login_file = login_file.and_then(|item| document.text(item, "login_file"));
        let anywhere = section.get("anywhere");
        let anywhere = anywhere.and_then(|item| document.parsed(item, "anywhere"));
        let door = Self {
            kind: kind?,
            listen: listen?,
            ways: ways?,
            login_file: login_file.map(PathBuf::from),
        };
        let checked = door.checked(anywhere.unwrap_or_default());
        document.accept(checked.map_err(|error| error.to_string()), item.span(), key)
    }

    fn show(&self) -> String {
        format!("{}={}", self.kind, self.listen)
    }
}

impl Element for Door {
    const NOUN: &'static str = "listen address";

    fn unique(&self) -> String {
        self.listen.to_string()
    }
}

impl Value for Way {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: WayError| error.to_string())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Element for Way {
    const NOUN: &'static str = "way";
    const LIST: Option<&'static str> = Some("at least one way, such as `direct`");

    fn unique(&self) -> String {
        self.to_string()
    }
}

fn section<'a, 't>(
    document: &mut Document<'_>,
    item: &'a Item<'t>,
    key: &str,
) -> Option<Section<'a, 't>> {
    let table = item.get_ref().as_table();
    if table.is_none() {
        document.wrong_type(item, key, "a list of tables: write `[[…]]`");
    }
    Some(Section {
        table: table?,
        at: item.span(),
    })
}

fn pair<A, B>(text: &str, wanted: &'static str) -> Result<(A, B), ValueError>
where
    A: FromStr<Err: fmt::Display>,
    B: FromStr<Err: fmt::Display>,
{
    let (first, second) = text.split_once('=').ok_or_else(|| ValueError::Pair {
        given: shown(text),
        wanted,
    })?;
    let half = |error: &dyn fmt::Display| ValueError::Half(error.to_string());
    Ok((
        first.parse().map_err(|error| half(&error))?,
        second.parse().map_err(|error| half(&error))?,
    ))
}
