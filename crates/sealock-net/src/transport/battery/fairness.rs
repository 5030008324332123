//! Streams that all have much to say share a connection fairly, whatever carries it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

const STREAMS: u64 = 8;
/// Enough for each stream to have had its window opened several times.
const TOTAL: u64 = 48 * 1024 * 1024;
/// How far the share of any stream may be from the mean.
const FACTOR: u64 = 2;

/// Several streams write as fast as they can; what has come of each by the time that so much has come of all.
pub(super) async fn bulk_streams_of_one_connection_get_like_shares(transport: Transport) {
    let net = Net::new(transport, Settings::default());
    let (near, far) = net.pair().await;
    let scope = Scope::new("bulk");
    let mut pairs = Vec::new();
    for _ in 0..STREAMS {
        pairs.push(stream(&near, &far).await);
    }
    let read: Arc<Vec<AtomicU64>> = Arc::new((0..STREAMS).map(|_| AtomicU64::new(0)).collect());
    let (all_in, all) = tokio::sync::oneshot::channel();
    let all_in = Arc::new(parking_lot::Mutex::new(Some(all_in)));
    for (index, (mut opened, mut accepted)) in pairs.into_iter().enumerate() {
        scope.spawn("write", async move {
            let chunk = Bytes::from_static(&[7; 16 * 1024]);
            while opened.send.write(chunk.clone()).await.is_ok() {}
        });
        let (read, all_in) = (Arc::clone(&read), Arc::clone(&all_in));
        scope.spawn("read", async move {
            while let Ok(Some(chunk)) = accepted.recv.read_chunk(64 * 1024).await {
                read[index].fetch_add(chunk.len() as u64, Ordering::Relaxed);
                if total(&read) >= TOTAL {
                    // The first one to see it ends the measurement.
                    if let Some(all_in) = all_in.lock().take() {
                        all_in.send(shares(&read)).ok();
                    }
                    return;
                }
            }
        });
    }
    let shares = tokio::time::timeout(SOON * 3, all).await;
    let shares = shares.expect("in time").expect("measured");
    let mean = shares.iter().sum::<u64>() / STREAMS;
    assert!(
        shares
            .iter()
            .all(|share| share * FACTOR >= mean && *share <= mean * FACTOR),
        "{transport}: mean {mean}, {shares:?}"
    );
}

fn shares(read: &[AtomicU64]) -> Vec<u64> {
    read.iter().map(|it| it.load(Ordering::Relaxed)).collect()
}

fn total(read: &[AtomicU64]) -> u64 {
    shares(read).iter().sum()
}
