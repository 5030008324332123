//! Many transfers at once, judged at both ends, with the longest silence that any of them saw.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{
    Begin, Deployment, Node, Topology,
    deployment::loopback,
    pattern::{Pattern, Way},
    say,
    traffic::{PatternServer, Running, StallRule, Transfer},
};

/// Where clients find the service on the consumer's machine.
pub(crate) const NEAR: u16 = 8080;
/// Where its origin listens on the provider's machine.
pub(crate) const FAR: u16 = 7000;

/// One service: its origin, the process that offers it, the one that reaches it.
pub(crate) struct Carried {
    pub(crate) origin: PatternServer,
    pub(crate) exposed: Node,
    pub(crate) connected: Node,
}

impl Carried {
    pub(crate) fn start(it: &Deployment<'_>) -> Result<Self> {
        Self::start_with(it, StallRule::default())
    }

    /// The origin judges stalls by this rule.
    pub(crate) fn start_with(it: &Deployment<'_>, rule: StallRule) -> Result<Self> {
        Ok(Self {
            origin: PatternServer::start_with(&it.net.prv, loopback(FAR), rule)?,
            exposed: it.provider.expose(&FAR.to_string(), "web")?,
            connected: it.consumer.connect("web", NEAR)?,
        })
    }

    /// No agent complained and both still run.
    pub(crate) fn is_well(&mut self) -> Result<()> {
        for node in [&mut self.exposed, &mut self.connected] {
            node.without_complaints()?;
            ensure!(node.is_running()?, "an agent has ended");
        }
        Ok(())
    }
}

/// A deployment with one service, ready to carry.
pub(crate) struct Carrying<'a> {
    pub(crate) it: Deployment<'a>,
    pub(crate) up: Node,
    pub(crate) carried: Carried,
}

impl<'a> Carrying<'a> {
    /// Both agents start after `before`, which may change the network first.
    pub(crate) fn start<T>(
        lab: &'a mut Topology,
        before: impl FnOnce(&Deployment<'a>) -> Result<T>,
    ) -> Result<(Self, T)> {
        let (it, up) = Deployment::up(lab, Begin::Open)?;
        let made = before(&it)?;
        let carried = Carried::start(&it)?;
        Ok((Self { it, up, carried }, made))
    }

    /// Starts transfers whose streams are numbered from `first`.
    pub(crate) fn load(&self, first: u64, count: u64, each: Transfer) -> Result<Load> {
        Load::start(&self.it, first, count, each)
    }

    /// No process complained and all of them still run.
    pub(crate) fn is_well(&mut self) -> Result<()> {
        self.up.without_complaints()?;
        ensure!(self.up.is_running()?, "the public side has ended");
        self.carried.is_well()
    }
}

/// Transfers under way.
pub(crate) struct Load {
    each: Transfer,
    running: Vec<(u64, Running)>,
}

impl Load {
    pub(crate) fn start(
        it: &Deployment<'_>,
        first: u64,
        count: u64,
        each: Transfer,
    ) -> Result<Self> {
        let running = (first..first + count).map(|stream| {
            let transfer = Transfer { stream, ..each };
            Ok((stream, transfer.start(&it.net.con, loopback(NEAR))?))
        });
        Ok(Self {
            each,
            running: running.collect::<Result<_>>()?,
        })
    }

    /// Waits until each transfer has got this many bytes.
    pub(crate) fn wait_for_each(&self, bytes: u64, within: Duration) -> Result<()> {
        for (stream, running) in &self.running {
            let waited = running.wait_for(bytes, within);
            waited.with_context(|| format!("stream {stream}"))?;
        }
        Ok(())
    }

    /// Whether none of them has got everything yet.
    pub(crate) fn is_under_way(&self) -> bool {
        let mut all = self.running.iter();
        all.all(|(_, running)| running.received() < self.each.down)
    }

    /// What the one that got most has got so far.
    pub(crate) fn most(&self) -> u64 {
        let all = self.running.iter();
        all.map(|(_, running)| running.received())
            .max()
            .unwrap_or_default()
    }

    /// Waits for the end of all; every byte of both directions must be right.
    pub(crate) fn finish(self, origin: &PatternServer, within: Duration) -> Result<Gaps> {
        let mut gaps = Vec::new();
        for (stream, running) in self.running {
            let down = running
                .finish()
                .with_context(|| format!("stream {stream} at the client"))?;
            let up = origin
                .report(stream, within)
                .with_context(|| format!("stream {stream} at the origin"))?;
            for (got, way, bytes) in [
                (down, Way::Down, self.each.down),
                (up, Way::Up, self.each.up),
            ] {
                let wanted = Pattern::new(stream, way).sha256(bytes);
                ensure!(
                    (got.bytes, &got.sha256) == (bytes, &wanted),
                    "stream {stream} {way:?} differs"
                );
                gaps.push(got.longest_gap);
            }
        }
        gaps.sort();
        Ok(Gaps(gaps))
    }
}

/// The longest time without progress of every direction of every transfer.
pub(crate) struct Gaps(Vec<Duration>);

impl Gaps {
    /// The one that 99 of a hundred do not exceed.
    pub(crate) fn p99(&self) -> Duration {
        let rank = (self.0.len() * 99).div_ceil(100);
        self.0
            .get(rank.saturating_sub(1))
            .copied()
            .unwrap_or_default()
    }

    /// The longest.
    pub(crate) fn most(&self) -> Duration {
        self.0.last().copied().unwrap_or_default()
    }

    /// Prints them and fails when the 99th of a hundred exceeds the bound.
    pub(crate) fn judge(&self, what: &str, most: Duration) -> Result<()> {
        let middle = self.0.get(self.0.len() / 2).copied().unwrap_or_default();
        say(&format!(
            "{what}: longest gaps of {} directions: median {middle:?}, p99 {:?}, most {:?}",
            self.0.len(),
            self.p99(),
            self.most()
        ));
        ensure!(
            self.p99() < most,
            "{what}: a gap of {:?}, not below {most:?}",
            self.p99()
        );
        Ok(())
    }
}
