//! `sealock demo`: the whole product on one machine, offline, without root, with state that is gone afterwards.
//!
//! It starts this very program as a public side and two agents, sends real bytes through them, and shows what each
//! promise looks like: what arrives, what is refused, what the relay can see, what a revocation cuts. Nothing is
//! simulated: every scene can fail, and then the exit code says so.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::cli::{Common, Demo};
use crate::print;
use crate::signals::Stop;

mod memory;
mod peers;
mod scenes;
mod stage;

use scenes::Figures;
use stage::Stage;

/// How long the whole demonstration may take before something hangs.
const DEADLINE: Duration = Duration::from_secs(120);

pub(crate) async fn run(_common: &Common, flags: &Demo) -> anyhow::Result<()> {
    let mut stop = Stop::new()?;
    let began = Instant::now();
    let play = async {
        tokio::time::timeout(DEADLINE, play())
            .await
            .context("the demonstration hangs")?
    };
    let (stage, figures) = tokio::select! {
        biased; // who stops it does not want to see the end
        () = stop.asked() => {
            print::error("stopped");
            return Ok(());
        }
        played = play => played?,
    };
    tell(&stage, &figures, began.elapsed());
    if flags.stay {
        print::line("");
        print::line("Everything keeps running until Ctrl-C.");
        stop.asked().await;
    }
    stage.end().await;
    Ok(())
}

/// Sets the stage and plays on it; the first scene that fails ends the demonstration, and what runs is ended with it.
async fn play() -> anyhow::Result<(Stage, Figures)> {
    let stage = scene(
        "a public side and two agents that dial out only",
        Stage::set(),
    )
    .await?;
    match scenes(&stage).await {
        Ok(figures) => Ok((stage, figures)),
        Err(error) => {
            stage.end().await;
            Err(error)
        }
    }
}

/// One scene after another.
async fn scenes(stage: &Stage) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    scene(
        "a web page behind one agent, fetched through the other",
        scenes::web_page(stage, &mut figures),
    )
    .await?;
    scene(
        "64 MiB in both directions at once, compared by SHA-256",
        scenes::both_ways(stage, &mut figures),
    )
    .await?;
    scene(
        "a service that policy denies",
        scenes::denied(stage, &mut figures),
    )
    .await?;
    scene(
        "what the relay can see of a secret that passes through it",
        scenes::blind_relay(stage, &mut figures),
    )
    .await?;
    scene(
        "an agent that is revoked while it talks",
        scenes::revoked(stage, &mut figures),
    )
    .await?;
    Ok(figures)
}

async fn scene<T>(what: &str, scene: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    print::line(&format!("  … {what}"));
    let began = Instant::now();
    match scene.await {
        Ok(done) => {
            print::line(&format!("  ✓ {what} ({} ms)", began.elapsed().as_millis()));
            Ok(done)
        }
        Err(error) => {
            print::line(&format!("  ✗ {what}"));
            Err(error.context(format!("the scene failed: {what}")))
        }
    }
}

fn tell(stage: &Stage, figures: &Figures, took: Duration) {
    print::line("");
    for line in figures.lines(stage) {
        print::line(&line);
    }
    print::line("");
    print::line(&format!(
        "All scenes held, in {:.1} s. Now for real:",
        took.as_secs_f64()
    ));
    print::line("");
    print::line(
        "  sealock up                                    # on a machine that others can reach",
    );
    print::line(
        "  sealock join SLK1-…                           # on each other machine, as `up` prints it",
    );
    print::line("  sealock expose 3000 --as web                  # where the program runs");
    print::line("  sealock connect web --listen 127.0.0.1:8080   # where it is needed");
}

/// Two things that must be equal; the error shows neither, because they are long.
fn same<T: PartialEq>(what: &str, left: &T, right: &T) -> anyhow::Result<()> {
    ensure!(left == right, "{what} differ");
    Ok(())
}
