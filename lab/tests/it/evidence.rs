//! Searches: they find what is there, on the wire, in memory and in files, and not what is elsewhere.

use std::{fs, net::UdpSocket, time::Duration};

use anyhow::{Result, ensure};
use lab::{
    Family, Spec,
    capture::Capture,
    evidence::{search_files, search_memory},
    scene,
};

const SOON: Duration = Duration::from_secs(5);
// Put together at run time, so that no other process and no log holds it by accident.
fn canary() -> String {
    format!("canary-{}-{}", "of-this-test", std::process::id())
}

#[test]
fn a_process_that_holds_a_text_is_told_from_one_that_does_not() {
    scene(Family::V4, |lab| {
        let host = lab.namespace("host")?;
        let holder =
            Spec::new("holder", "sh").args(["-c", "read text; echo read; read more; echo $text"]);
        let mut holder = lab.start(&host, holder.open_input())?;
        let mut input = holder.take_input().expect("an open input");
        std::io::Write::write_all(&mut input, format!("{}\n", canary()).as_bytes())?;
        holder.wait_for_line("read", SOON)?;
        let mut other = lab.start(
            &host,
            Spec::new("other", "sh").args(["-c", "echo up; exec sleep 300"]),
        )?;
        other.wait_for_line("up", SOON)?;

        let held = search_memory(holder.pid(), canary().as_bytes())?;
        let not_held = search_memory(other.pid(), canary().as_bytes())?;

        ensure!(
            !held.places.is_empty(),
            "not found in {} bytes",
            held.looked_at
        );
        assert!(held.found_nothing().is_err());
        ensure!(
            not_held.looked_at > 100_000,
            "only {} bytes",
            not_held.looked_at
        );
        not_held.found_nothing()
    });
}

#[test]
fn a_file_that_holds_a_text_is_named() {
    scene(Family::V4, |lab| {
        let below = lab.directory().join("a/b");
        fs::create_dir_all(&below)?;
        fs::write(below.join("clean"), "nothing")?;
        search_files(lab.directory(), canary().as_bytes())?.found_nothing()?;
        fs::write(below.join("dirty"), format!("..{}..", canary()))?;
        let found = search_files(lab.directory(), canary().as_bytes())?;
        assert_eq!(found.places, [below.join("dirty").display().to_string()]);
        Ok(())
    });
}

#[test]
fn a_capture_holds_what_passed_while_it_ran() {
    scene(Family::V4, |lab| {
        let ix = lab.bridge("ix")?;
        let (one, other) = (lab.host("one", &ix, 1)?, lab.host("other", &ix, 2)?);
        let (from, to) = ((ix.v4(1), 0), (ix.v4(2), 7000));
        let sender = one.enter(move || UdpSocket::bind(from))??;
        let receiver = other.enter(move || UdpSocket::bind(to))??;
        let send = |text: &str| -> Result<()> {
            sender.send_to(text.as_bytes(), to)?;
            receiver.recv(&mut [0; 100])?;
            Ok(())
        };
        send("before the capture")?;
        let capture = Capture::start(lab, ix.namespace())?;
        send(&canary())?;
        let captured = capture.stop()?;

        ensure!(
            captured.search(canary().as_bytes())?.places.len() == 1,
            "not in the capture"
        );
        captured.search(b"before the capture")?.found_nothing()?;
        ensure!(!captured.packets(lab, "udp port 7000")?.is_empty());
        assert_eq!(captured.packets(lab, "udp port 7001")?, [""; 0]);
        Ok(())
    });
}
