//! What one direction of a wire does to packets, and the words that set it.

use std::time::Duration;

use anyhow::{Context, Result, bail};

pub use super::chance::Share;

// What a cheap home router holds: 200 ms at 10 Mbit/s.
const QUEUE: u64 = 256 * 1024;

/// How one direction treats packets. A new one is a perfect cable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Nothing passes, not even what is below IP.
    pub down: bool,
    /// How long every packet takes.
    pub delay: Duration,
    /// What is added to that, evenly from nothing to this; packets keep their order.
    pub jitter: Duration,
    /// The share of packets lost, each by itself.
    pub loss: Share,
    /// Losses that come in bursts.
    pub burst: Option<Burst>,
    /// The share of packets held back, and for how long: those behind overtake them.
    pub reorder: (Share, Duration),
    /// The share of packets that arrive twice.
    pub duplicate: Share,
    /// The share of packets with a flipped bit that the receiver's checksum finds.
    pub corrupt: Share,
    /// The share of packets with a flipped bit in what they carry, under a checksum that is right again.
    pub forge: Share,
    /// The most bits a second.
    pub rate: Option<u64>,
    /// How many bytes wait for their turn when a rate is set; what comes on top is lost.
    pub queue: u64,
    /// The longest IP packet; longer ones vanish without an answer.
    pub mtu: Option<usize>,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            down: false,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: Share::NONE,
            burst: None,
            reorder: (Share::NONE, Duration::ZERO),
            duplicate: Share::NONE,
            corrupt: Share::NONE,
            forge: Share::NONE,
            rate: None,
            queue: QUEUE,
            mtu: None,
        }
    }
}

/// The model of Gilbert and Elliott: a good and a bad state, looked at once a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Burst {
    /// The chance that a good state turns bad.
    pub begin: Share,
    /// The chance that a bad state turns good.
    pub end: Share,
    /// The share of packets lost in the bad state.
    pub loss: Share,
}

/// One change of a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// A perfect cable again.
    Clear,
    /// Nothing passes.
    Down,
    /// Packets pass again, as the rest of the profile says.
    Up,
    /// Sets [`Profile::delay`].
    Delay(Duration),
    /// Sets [`Profile::jitter`].
    Jitter(Duration),
    /// Sets [`Profile::loss`].
    Loss(Share),
    /// Sets [`Profile::burst`].
    Burst(Option<Burst>),
    /// Sets [`Profile::reorder`].
    Reorder(Share, Duration),
    /// Sets [`Profile::duplicate`].
    Duplicate(Share),
    /// Sets [`Profile::corrupt`].
    Corrupt(Share),
    /// Sets [`Profile::forge`].
    Forge(Share),
    /// Sets [`Profile::rate`].
    Rate(Option<u64>),
    /// Sets [`Profile::queue`].
    Queue(u64),
    /// Sets [`Profile::mtu`].
    Mtu(Option<usize>),
}

impl Profile {
    /// Makes one change.
    pub fn apply(&mut self, setting: Setting) {
        match setting {
            Setting::Clear => *self = Self::default(),
            Setting::Down => self.down = true,
            Setting::Up => self.down = false,
            Setting::Delay(delay) => self.delay = delay,
            Setting::Jitter(jitter) => self.jitter = jitter,
            Setting::Loss(share) => self.loss = share,
            Setting::Burst(burst) => self.burst = burst,
            Setting::Reorder(share, held) => self.reorder = (share, held),
            Setting::Duplicate(share) => self.duplicate = share,
            Setting::Corrupt(share) => self.corrupt = share,
            Setting::Forge(share) => self.forge = share,
            Setting::Rate(rate) => self.rate = rate,
            Setting::Queue(bytes) => self.queue = bytes,
            Setting::Mtu(most) => self.mtu = most,
        }
    }
}

impl Setting {
    /// Parses a word and its values: `down`, `delay 20ms`, `loss 5`, `burst 1 25`, `reorder 5 10ms`, `rate 256kbit`.
    ///
    /// # Errors
    ///
    /// Names what is wrong.
    pub fn parse(words: &[&str]) -> Result<Self> {
        Ok(match words {
            ["clear"] => Self::Clear,
            ["down"] => Self::Down,
            ["up"] => Self::Up,
            ["delay", time] => Self::Delay(duration(time)?),
            ["jitter", time] => Self::Jitter(duration(time)?),
            ["loss", share] => Self::Loss(Share::parse(share)?),
            ["burst", "none"] => Self::Burst(None),
            ["burst", begin, end] => Self::burst(begin, end, "100")?,
            ["burst", begin, end, loss] => Self::burst(begin, end, loss)?,
            ["reorder", share, held] => Self::Reorder(Share::parse(share)?, duration(held)?),
            ["duplicate", share] => Self::Duplicate(Share::parse(share)?),
            ["corrupt", share] => Self::Corrupt(Share::parse(share)?),
            ["forge", share] => Self::Forge(Share::parse(share)?),
            ["rate", "none"] => Self::Rate(None),
            ["rate", rate] => Self::Rate(Some(bits(rate)?)),
            ["queue", size] => Self::Queue(bytes(size)?),
            ["mtu", "none"] => Self::Mtu(None),
            ["mtu", most] => Self::Mtu(Some(most.parse().context("a number of bytes")?)),
            _ => bail!(
                "`{}` is none of: clear; up; down; delay TIME; jitter TIME; loss %; burst none; burst % % [%]; \
                 reorder % TIME; duplicate %; corrupt %; forge %; rate none; rate RATE; queue SIZE; mtu none; mtu N",
                words.join(" ")
            ),
        })
    }

    fn burst(begin: &str, end: &str, loss: &str) -> Result<Self> {
        Ok(Self::Burst(Some(Burst {
            begin: Share::parse(begin)?,
            end: Share::parse(end)?,
            loss: Share::parse(loss)?,
        })))
    }
}

/// Parses a time with its unit: `20ms`, `2s`, `500us`, `2m`.
///
/// # Errors
///
/// Fails without a number or a unit.
pub(super) fn duration(text: &str) -> Result<Duration> {
    let (number, unit) = split(text)?;
    let micros = match unit {
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        _ => bail!("`{text}` needs a unit: us, ms, s, m"),
    };
    Ok(Duration::from_micros(number.saturating_mul(micros)))
}

fn bits(text: &str) -> Result<u64> {
    let (number, unit) = split(text)?;
    let rate = match unit {
        "bit" => number,
        "kbit" => number.saturating_mul(1_000),
        "mbit" => number.saturating_mul(1_000_000),
        _ => bail!("`{text}` needs a unit: bit, kbit, mbit (a second)"),
    };
    anyhow::ensure!(rate > 0, "a rate of nothing is `down`");
    Ok(rate)
}

fn bytes(text: &str) -> Result<u64> {
    let (number, unit) = split(text)?;
    Ok(match unit {
        "B" => number,
        "KiB" => number.saturating_mul(1 << 10),
        "MiB" => number.saturating_mul(1 << 20),
        _ => bail!("`{text}` needs a unit: B, KiB, MiB"),
    })
}

fn split(text: &str) -> Result<(u64, &str)> {
    let at = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number = text[..at]
        .parse()
        .with_context(|| format!("`{text}` does not begin with a number"))?;
    Ok((number, &text[at..]))
}
