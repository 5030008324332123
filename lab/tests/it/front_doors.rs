//! Front doors of an agent as programs of every day use them: curl, ssh and git, by SOCKS5 and as an HTTP proxy.

use std::{fs, net::SocketAddr};

use anyhow::{Context, Result, ensure};
use lab::{
    Deployment, Family, Spec,
    deployment::{Begin, loopback},
    node::Ended,
    scene, servers,
};

const SOCKS5: &str = "127.0.0.1:1080";
const HTTP: &str = "127.0.0.1:3128";
const SSH: u16 = 22;
const WEB: u16 = 8000;
const GIT: u16 = 9418;
/// A server on the public network, which rules allow, and a port of it that they do not.
const OUTSIDE: u16 = 8081;
const DENIED: u16 = 8082;
/// A port that rules allow and nobody listens at.
const NOBODY: u16 = 8083;
const INSIDE: &str = "a page of a service\n";
const ABROAD: &str = "a page outside\n";

fn curl(it: &Deployment<'_>, options: &[&str]) -> Result<Ended> {
    let usual = ["-sS", "--max-time", "30", "--noproxy", ""];
    let spec = Spec::new("curl", "curl").args(usual).args(options);
    it.lab().run(&it.net.con, spec)
}

fn page(it: &Deployment<'_>, name: &str, text: &str) -> Result<std::path::PathBuf> {
    let files = it.lab().directory().join(name);
    fs::create_dir(&files)?;
    fs::write(files.join("page"), text)?;
    Ok(files)
}

/// A repository with one commit below the directory that is returned.
fn repository(it: &Deployment<'_>) -> Result<std::path::PathBuf> {
    let base = it.lab().directory().join("repositories");
    let path = base.join("small");
    fs::create_dir_all(&path)?;
    fs::write(path.join("file"), "committed\n")?;
    let at = path.to_str().context("a path in UTF-8")?;
    let commit = [
        "-c",
        "user.name=lab",
        "-c",
        "user.email=lab@localhost",
        "commit",
        "-q",
        "-m",
        "one",
    ];
    for arguments in [&["init", "-q"][..], &["add", "."], &commit] {
        let spec = git("git").args(["-C", at]).args(arguments);
        it.lab().run(&it.net.prv, spec)?.success()?;
    }
    Ok(base)
}

fn git(name: &str) -> Spec {
    Spec::new(name, "git").env("GIT_CONFIG_GLOBAL", "/dev/null")
}

#[test]
fn programs_of_every_day_reach_services_and_places_outside_by_both_front_doors() {
    scene(Family::V4, |lab| {
        let (mut it, _up) = Deployment::up(lab, Begin::Open)?;
        let doors = format!("socks5={SOCKS5},http={HTTP}");
        it.consumer = it.consumer.clone().with_env("SEALOCK_AGENT__DOOR", &doors);
        let outside = it.relay_ip();
        for port in [OUTSIDE, NOBODY] {
            let allow = format!("policy allow cons --to {outside}:{port}");
            it.admin.ask(&allow)?;
        }
        let _agents = [it.provider.agent()?, it.consumer.agent()?];
        for (name, port) in [("shell", SSH), ("web", WEB), ("code", GIT)] {
            it.provider
                .ask(&format!("expose {port} --as {name} --detach"))?;
        }
        let sshd = servers::Ssh::start(it.lab(), &it.net.prv, loopback(SSH))?;
        let source = repository(&it)?;
        let _git = servers::git(it.lab(), &it.net.prv, loopback(GIT), &source)?;
        let files = page(&it, "inside", INSIDE)?;
        let _web = servers::http(it.lab(), &it.net.prv, loopback(WEB), &files)?;
        let files = page(&it, "abroad", ABROAD)?;
        let public = it.public.namespace();
        let at = |port| SocketAddr::new(outside, port);
        let _allowed = servers::http(it.lab(), public, at(OUTSIDE), &files)?;
        let _denied = servers::http(it.lab(), public, at(DENIED), &files)?;

        let http = format!("http://{HTTP}");
        let doors = [
            ["--socks5-hostname", SOCKS5].as_slice(),
            &["--proxy", &http],
            &["--proxy", &http, "--proxytunnel"],
        ];
        for door in doors {
            let service = [door, &["http://web.sealock.internal/page"]].concat();
            let service = curl(&it, &service)?;
            ensure!(service.stdout == INSIDE, "{door:?}: {service:?}");
            let url = format!("http://{outside}:{OUTSIDE}/page");
            let abroad = curl(&it, &[door, &[&url, &url]].concat())?;
            ensure!(abroad.stdout == ABROAD.repeat(2), "{door:?}: {abroad:?}");
        }
        refusals(&it)?;

        for way in [["-X", "5", "-x", SOCKS5], ["-X", "connect", "-x", HTTP]] {
            let proxy = format!("ProxyCommand=nc {} %h %p", way.join(" "));
            let login = sshd.client("login").args([
                "-o",
                &proxy,
                "shell.sealock.internal",
                "echo $((40 + 2))",
            ]);
            let login = it.lab().run(&it.net.con, login)?.success()?;
            ensure!(login.trim() == "42", "{way:?}: {login}");
        }
        clone(&it)
    });
}

/// What is not allowed, and what nobody answers, is told in the words of each door.
fn refusals(it: &Deployment<'_>) -> Result<()> {
    let outside = it.relay_ip();
    let http = format!("http://{HTTP}");
    for (port, status, reason, code) in [
        (DENIED, "403", "POLICY_DENIED", "(2)"),
        (NOBODY, "502", "TARGET_REFUSED", "(5)"),
    ] {
        let url = format!("http://{outside}:{port}/page");
        let told = curl(it, &["-i", "--proxy", &http, &url])?;
        let head = told.stdout.to_ascii_lowercase();
        ensure!(head.starts_with(&format!("http/1.1 {status}")), "{told:?}");
        ensure!(head.contains("proxy-status: sealock; error="), "{told:?}");
        ensure!(told.stdout.contains(reason), "{told:?}");
        let told = curl(it, &["--proxytunnel", "--proxy", &http, &url])?;
        ensure!(told.stderr.contains(status), "{told:?}");
        let told = curl(it, &["--socks5-hostname", SOCKS5, &url])?;
        ensure!(
            !told.status.success() && told.stderr.contains(code),
            "{told:?}"
        );
    }
    Ok(())
}

fn clone(it: &Deployment<'_>) -> Result<()> {
    let script = it.lab().directory().join("proxy.sh");
    fs::write(
        &script,
        format!("#!/bin/sh\nexec nc -X connect -x {HTTP} \"$1\" \"$2\"\n"),
    )?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&script, mode)?;
    let copy = it.lab().directory().join("copy");
    let clone = git("clone")
        .env("GIT_PROXY_COMMAND", &script)
        .args(["clone", "-q", "git://code.sealock.internal/small"])
        .args([&copy]);
    it.lab().run(&it.net.con, clone)?.success()?;
    ensure!(
        fs::read_to_string(copy.join("file"))? == "committed\n",
        "the copy differs"
    );
    Ok(())
}
