//! Tasks with an owner: a `Scope` ends what was spawned in it, and a panic ends one task only.
//!
//! A task hears of a shutdown through [`Spawner::stopping`] and may finish in its own time; when the scope is dropped,
//! or the deadline of a shutdown has passed, its future is dropped at the await that it is in.
//! This is the only place that spawns. Deliberately absent: restarts; the owner decides what the end of a task means.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;

static PANICS: AtomicU64 = AtomicU64::new(0);

/// How many tasks of this process ended in a panic.
#[must_use]
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Owns tasks; dropping it ends them.
#[derive(Debug)]
pub struct Scope {
    spawner: Spawner,
}

/// Starts tasks in a scope that somebody else owns.
#[derive(Debug, Clone)]
pub struct Spawner {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: &'static str,
    tracker: TaskTracker,
    stopping: CancellationToken,
    ended: CancellationToken,
}

impl Scope {
    /// An empty scope; `name` stands in the log beside the task's own name.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        let spawner = Spawner {
            inner: Arc::new(Inner {
                name,
                tracker: TaskTracker::new(),
                stopping: CancellationToken::new(),
                ended: CancellationToken::new(),
            }),
        };
        Self { spawner }
    }

    /// Starts a task, see [`Spawner::spawn`].
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawner.spawn(name, future);
    }

    /// A handle that can start tasks here without owning them.
    #[must_use]
    pub fn spawner(&self) -> Spawner {
        self.spawner.clone()
    }

    /// Resolves when the scope has been asked to stop, see [`Spawner::stopping`].
    pub fn stopping(&self) -> WaitForCancellationFuture<'_> {
        self.spawner.stopping()
    }

    /// Waits until no task is running; others may be spawned meanwhile and afterwards.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn idle(&self) {
        while !self.is_empty() {
            tokio::time::sleep(IDLE_LOOK).await;
        }
    }

    /// How many tasks are running.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spawner.inner.tracker.len()
    }

    /// Whether no task is running.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spawner.inner.tracker.is_empty()
    }

    /// Asks every task to stop, waits up to `grace`, and ends those that are left. Returns how many had to be ended.
    ///
    /// # Cancel safety
    /// Dropping the future drops the scope, and with it every task.
    pub async fn shutdown(self, grace: Duration) -> usize {
        let inner = &self.spawner.inner;
        inner.stopping.cancel();
        inner.tracker.close();
        if tokio::time::timeout(grace, inner.tracker.wait())
            .await
            .is_ok()
        {
            return 0;
        }
        let left = inner.tracker.len();
        inner.ended.cancel();
        // Each task that is left is dropped at its await; one that blocks its thread cannot be waited for.
        let dropped = tokio::time::timeout(DROP_GRACE, inner.tracker.wait()).await;
        if dropped.is_err() {
            tracing::warn!(
                scope = inner.name,
                tasks = inner.tracker.len(),
                "tasks block their threads"
            );
        }
        left
    }
}

const IDLE_LOOK: Duration = Duration::from_millis(5); // asked at an end, where nobody notices five
const DROP_GRACE: Duration = Duration::from_secs(1); // dropping a future takes microseconds unless it blocks

impl Drop for Scope {
    fn drop(&mut self) {
        let inner = &self.spawner.inner;
        inner.stopping.cancel();
        inner.ended.cancel();
        inner.tracker.close();
    }
}

impl Spawner {
    /// Starts a task that ends with the scope. A panic in it is logged, counted and ends this task only.
    ///
    /// In a scope that has ended the future is dropped without a poll.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        let size = size_of_val(&future);
        // In a box of its own: inside the task it would be kept twice, once as it came and once as it is polled.
        let guarded = Box::pin(AssertUnwindSafe(future).catch_unwind());
        let task = async move {
            let outcome = tokio::select! {
                biased; // an ended scope must win over a task that is always ready
                () = inner.ended.cancelled() => return,
                outcome = guarded => outcome,
            };
            if let Err(panic) = outcome {
                PANICS.fetch_add(1, Ordering::Relaxed);
                tracing::error!(
                    scope = inner.name,
                    task = name,
                    err = text_of(&*panic),
                    "a task panicked and was ended"
                );
            }
        };
        tracing::trace!(task = name, size, frame = size_of_val(&task), "task begins");
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the owner that all other code spawns through"
        )]
        tokio::spawn(self.inner.tracker.track_future(task));
    }

    /// Resolves when the scope has been asked to stop; a task that has something to finish selects on it.
    ///
    /// # Cancel safety
    /// Safe.
    pub fn stopping(&self) -> WaitForCancellationFuture<'_> {
        self.inner.stopping.cancelled()
    }

    /// Whether the scope has been asked to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.inner.stopping.is_cancelled()
    }
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a text")
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// Tells when a task's future is dropped.
    struct Dropped(Option<oneshot::Sender<()>>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            if let Some(tell) = self.0.take() {
                let _gone = tell.send(());
            }
        }
    }

    fn forever(scope: &Scope) -> (oneshot::Receiver<()>, oneshot::Receiver<()>) {
        let (started_tx, started) = oneshot::channel();
        let (dropped_tx, dropped) = oneshot::channel();
        let witness = Dropped(Some(dropped_tx));
        scope.spawn("forever", async move {
            let _witness = witness;
            started_tx.send(()).expect("the test waits");
            std::future::pending::<()>().await;
        });
        (started, dropped)
    }

    #[tokio::test]
    async fn dropping_a_scope_drops_its_tasks() {
        let scope = Scope::new("test");
        let (started, dropped) = forever(&scope);
        started.await.expect("the task runs");
        drop(scope);
        dropped.await.expect("the task's values are dropped");
    }

    #[tokio::test]
    async fn a_panic_ends_one_task_and_is_counted() {
        let before = panics();
        let scope = Scope::new("test");
        let (tx, rx) = oneshot::channel();
        scope.spawn("bad", async { panic!("as the test wishes") });
        scope.spawn("good", async move { tx.send(7).expect("the test waits") });
        assert_eq!(rx.await, Ok(7));
        assert_eq!(scope.shutdown(Duration::from_secs(5)).await, 0);
        assert_eq!(panics(), before + 1);
    }

    #[tokio::test]
    async fn shutdown_lets_a_task_finish_what_it_began() {
        let scope = Scope::new("test");
        let spawner = scope.spawner();
        let (tx, rx) = oneshot::channel();
        scope.spawn("polite", async move {
            spawner.stopping().await;
            tx.send("flushed").expect("the test waits");
        });
        assert_eq!(scope.shutdown(Duration::from_secs(5)).await, 0);
        assert_eq!(rx.await, Ok("flushed"));
    }

    #[tokio::test]
    async fn shutdown_ends_a_task_that_outstays_its_grace() {
        let scope = Scope::new("test");
        let (started, dropped) = forever(&scope);
        started.await.expect("the task runs");
        assert_eq!(scope.shutdown(Duration::ZERO).await, 1);
        dropped.await.expect("the task's values are dropped");
    }
}
