//! What a flow costs that idles, in all the nodes that it goes through.

use anyhow::{Result, ensure};
use sealock_control::controller::Starter;
use sealock_net::task::Scope;
use sealock_proto::wire::SessionKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::deployment::{Deployment, address, any_port, serve};
use crate::long::resident;
use crate::providers::offer;

/// Enough that what the first ones need for all is behind us, and few enough to be quick.
const FLOWS: u64 = 60;
/// For a provider, a relay and a consumer together, with what the controller writes down and both programs. The three
/// programs by themselves keep 26 KiB; it was 73 while each stream kept its handshake's library.
const LIMIT: u64 = 46 * 1024;

// Issue 2, speed and size. RSS is what a user sees, and unlike time it is the same on a busy machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_flow_keeps_little_memory_in_all_the_nodes_together() -> Result<()> {
    let tasks = Scope::new("test");
    let deployment = Deployment::start(Starter::Open).await?;
    let provider = deployment.agent("provider", SessionKind::Full).await?;
    let caller = deployment.agent("caller", SessionKind::CallerOnly).await?;
    let program = |mut stream: TcpStream| async move {
        if stream.write_all(&[1]).await.is_ok() {
            let _ended = stream.read_u8().await;
        }
    };
    let target = serve(&tasks, program).await?;
    ensure!(provider.offer(offer(target)?), "the name was taken");
    let listen = address(&caller.connect("letter".parse()?, &any_port()).await?)?;
    crate::providers::until(listen, |found| found == "\u{1}\u{1}\u{1}\u{1}").await?;

    let mut flows = Vec::new();
    let mut before = 0;
    for flow in 0..2 * FLOWS {
        if flow == FLOWS {
            before = resident()?;
        }
        let mut stream = TcpStream::connect(listen).await?;
        stream.read_u8().await?;
        flows.push(stream);
    }
    let each = resident()?.saturating_sub(before) / FLOWS;
    assert!(each <= LIMIT, "{each} bytes for each");
    Ok(())
}
