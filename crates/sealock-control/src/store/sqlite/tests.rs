//! The battery on SQLite, and what only a file can suffer: damage, cut-off logs, a full disk.

use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::store::battery::{Bench, at, battery, rule};

struct Sqlite {
    store: Arc<SqliteStore>,
    dir: TempDir,
}

impl Sqlite {
    async fn open(dir: TempDir, if_missing: IfMissing) -> Self {
        let store = SqliteStore::open(&dir.path().join("db.sqlite"), if_missing).await;
        Self {
            store: Arc::new(store.expect("it opens")),
            dir,
        }
    }

    /// Another process that holds the database.
    async fn locked(&self) -> SqliteConnection {
        let path = self.dir.path().join("db.sqlite");
        let mut holder = SqliteConnection::connect_with(&options(&path))
            .await
            .expect("another process");
        for sql in ["BEGIN IMMEDIATE", "INSERT INTO meta VALUES ('a', 'b')"] {
            sqlx::query(sql).execute(&mut holder).await.expect(sql);
        }
        holder
    }
}

async fn let_go(holder: &mut SqliteConnection) {
    let undone = sqlx::query("ROLLBACK").execute(holder).await;
    undone.expect("let go");
}

impl Bench for Sqlite {
    async fn fresh() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self::open(dir, IfMissing::Create).await
    }

    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store) as Arc<dyn Store>
    }

    async fn killed(self) -> Self {
        let copy = tempfile::tempdir().expect("a temporary directory");
        // The log first: the database may only be older than what the log expects if a checkpoint ran in between.
        for name in ["db.sqlite", "db.sqlite-wal"] {
            let from = self.dir.path().join(name);
            if from.exists() {
                std::fs::copy(&from, copy.path().join(name)).expect("copied");
            }
        }
        Self::open(copy, IfMissing::Refuse).await
    }

    async fn tamper(&self, sql: &'static str) {
        let mut connection = self.store.writer().acquire().await.expect("free");
        for guard in [
            "DROP TRIGGER audit_is_never_edited",
            "DROP TRIGGER audit_is_only_pruned",
            sql,
        ] {
            sqlx::query(guard)
                .execute(&mut *connection)
                .await
                .expect(guard);
        }
    }
}

battery! { Sqlite:
    one_token_lets_exactly_one_of_many_in
    a_certificate_that_cannot_be_made_leaves_the_token_unused
    a_token_lets_in_only_whom_and_when_it_says
    a_token_without_a_name_cannot_take_a_name_that_is_known
    a_revoked_key_never_comes_back
    a_revocation_leaves_the_view_when_its_certificate_has_ended
    renewal_needs_the_very_certificate_that_was_issued
    the_first_owns_a_name_and_another_needs_a_rule
    every_provider_has_its_terms_and_the_owner_says_whether_callers_stay
    an_older_generation_changes_nothing
    a_generation_beyond_the_range_is_refused
    a_lease_that_ended_keeps_the_provider_in_the_view
    a_heartbeat_that_says_nothing_new_makes_no_version
    a_name_passes_on_when_its_owner_goes
    every_change_of_the_rules_makes_one_version
    applying_a_file_touches_only_what_came_from_files
    tenants_see_nothing_of_each_other
    the_record_holds_every_act_and_can_be_searched
    the_chain_shows_every_edit_and_every_gap
    retention_takes_the_old_end_and_leaves_a_whole_chain
    a_kill_loses_nothing_that_was_confirmed
    the_first_value_of_a_setting_stays
    a_node_comes_back_by_the_last_certificate_that_it_kept
    an_answer_that_was_lost_locks_nobody_out
    whoever_is_revoked_or_too_late_or_unknown_does_not_come_back
    a_proof_is_taken_once
    what_is_replaced_is_dropped_and_what_may_come_back_is_not
}

fn tenant() -> TenantName {
    "default".parse().expect("canonical")
}

async fn filled() -> Sqlite {
    let bench = Sqlite::fresh().await;
    let act = Act::done(at(0), "admin:0", "tenant.add", "default");
    let rules: Vec<Rule> = (0..200).map(|number| rule(&format!("r{number}"))).collect();
    let made = bench.store.add_tenant(&tenant(), &rules, &act).await;
    assert!(made.expect("made"));
    bench
}

/// F38: whatever part of the file is overwritten, either nothing is lost or the start is refused with the way out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_database_is_refused_with_the_way_out_and_left_as_it_is() {
    let bench = filled().await;
    bench.store.close().await;
    let path = bench.dir.path().join("db.sqlite");
    let whole = std::fs::read(&path).expect("readable");
    let mut refused = 0;
    for page in 0..whole.len() / 4096 {
        let mut damaged = whole.clone();
        damaged[page * 4096..][..64].fill(0xa5);
        std::fs::write(&path, &damaged).expect("writable");
        match SqliteStore::open(&path, IfMissing::Create).await {
            Ok(store) => {
                let (rules, _) = store.rules(&tenant()).await.expect("all there");
                assert_eq!(rules.len(), 200, "page {page}");
                store.close().await;
            }
            Err(error) => {
                refused += 1;
                let text = error.to_string();
                assert!(text.contains(&path.display().to_string()), "{text}");
                assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
                assert!(text.contains(".recover"), "{text}");
                assert_eq!(std::fs::read(&path).expect("readable"), damaged);
            }
        }
    }
    assert!(refused > 3, "{refused} pages noticed");
}

#[tokio::test]
async fn an_empty_or_missing_database_is_never_taken_for_a_new_one() {
    let bench = filled().await;
    bench.store.close().await;
    let path = bench.dir.path().join("db.sqlite");
    std::fs::write(&path, b"").expect("writable");
    let empty = SqliteStore::open(&path, IfMissing::Create).await;
    assert!(matches!(empty, Err(OpenError::Damaged { .. })), "{empty:?}");
    std::fs::remove_file(&path).expect("there");
    let missing = SqliteStore::open(&path, IfMissing::Refuse).await;
    assert!(
        matches!(missing, Err(OpenError::Missing { .. })),
        "{missing:?}"
    );
    assert!(!path.exists());
}

#[tokio::test]
async fn a_log_that_was_cut_off_recovers_to_an_earlier_commit() {
    let bench = filled().await;
    let copy = tempfile::tempdir().expect("a temporary directory");
    let path = copy.path().join("db.sqlite");
    std::fs::copy(bench.dir.path().join("db.sqlite"), &path).expect("copied");
    let log = std::fs::read(bench.dir.path().join("db.sqlite-wal")).expect("readable");
    assert!(log.len() > 4096, "the log holds what was done");
    std::fs::write(copy.path().join("db.sqlite-wal"), &log[..log.len() - 700]).expect("written");
    let store = SqliteStore::open(&path, IfMissing::Refuse)
        .await
        .expect("recovers");
    let rules = store.rules(&tenant()).await;
    assert!(
        matches!(rules, Err(StoreError::NoSuch { .. })),
        "the last commit is gone whole: {rules:?}"
    );
}

/// F37: a full disk refuses writes by name, and reading goes on.
#[tokio::test]
async fn a_full_disk_refuses_writes_clearly_and_stays_readable() {
    let bench = filled().await;
    let mut connection = bench.store.writer().acquire().await.expect("free");
    sqlx::query("PRAGMA max_page_count = 1") // SQLite takes the present size as the least
        .execute(&mut *connection)
        .await
        .expect("set");
    drop(connection);
    let acts = [Act::done(at(1), "admin:0", "a.b", "x".repeat(500))];
    let mut result = Ok(());
    for _ in 0..100 {
        result = bench.store.record(Some(&tenant()), &acts).await;
        if result.is_err() {
            break;
        }
    }
    assert!(matches!(result, Err(StoreError::Full)), "{result:?}");
    let (rules, _) = bench.store.rules(&tenant()).await.expect("readable");
    assert_eq!(rules.len(), 200);
    let report = bench
        .store
        .verify_audit(Some(&tenant()))
        .await
        .expect("readable");
    assert_eq!(report.broken_at, None);
}

#[tokio::test]
async fn audit_rows_cannot_be_edited_or_taken_out_by_a_statement() {
    let bench = filled().await;
    let mut connection = bench.store.writer().acquire().await.expect("free");
    for sql in ["UPDATE audit SET actor = 'x'", "DELETE FROM audit"] {
        let refused = sqlx::query(sql).execute(&mut *connection).await;
        assert!(refused.is_err(), "{sql}");
    }
}

#[tokio::test]
async fn the_database_is_private_and_every_commit_reaches_the_disk() {
    use std::os::unix::fs::MetadataExt;
    let bench = filled().await;
    for name in ["db.sqlite", "db.sqlite-wal"] {
        let mode = std::fs::metadata(bench.dir.path().join(name))
            .expect("there")
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let mut connection = bench.store.writer().acquire().await.expect("free");
    for (pragma, expected) in [("PRAGMA synchronous", 2), ("PRAGMA foreign_keys", 1)] {
        let (value,): (i64,) = sqlx::query_as(pragma)
            .fetch_one(&mut *connection)
            .await
            .expect(pragma);
        assert_eq!(value, expected, "{pragma}");
    }
}

/// F37: after a write that the disk did not confirm, nothing is written until a restart; reading goes on.
#[tokio::test]
async fn an_unconfirmed_write_stops_all_writing_until_a_restart() {
    let bench = filled().await;
    let noted = bench.store.note(StoreError::Unsafe);
    assert!(matches!(noted, StoreError::Unsafe));
    let acts = [Act::done(at(1), "admin:0", "a.b", "x")];
    let refused = bench.store.record(Some(&tenant()), &acts).await;
    assert!(matches!(refused, Err(StoreError::Unsafe)), "{refused:?}");
    assert_eq!(
        bench
            .store
            .rules(&tenant())
            .await
            .expect("readable")
            .0
            .len(),
        200
    );
    let bench = bench.killed().await;
    bench
        .store
        .record(Some(&tenant()), &acts)
        .await
        .expect("written again");
}

/// F37: SQLite undoes a transaction by itself when the disk is full; what then fails must not refuse the next one.
#[tokio::test]
async fn writes_go_on_after_a_transaction_that_sqlite_itself_undid() {
    let bench = filled().await;
    let mut transaction = bench.store.begin().await.expect("begun");
    sqlx::query("ROLLBACK")
        .execute(&mut *transaction)
        .await
        .expect("undone behind our back");
    assert!(bench.store.commit(transaction).await.is_err());
    let acts = [Act::done(at(1), "admin:0", "a.b", "c")];
    let recorded = bench.store.record(Some(&tenant()), &acts).await;
    assert!(recorded.is_ok(), "{recorded:?}");
}

/// S13: one token, shown at once to two controllers over one database, lets one node in; the transaction decides, and
/// no memory of either process.
async fn redeem_at_two_controllers(rounds: u8) {
    const EACH: usize = 32; // 64 over both
    let bench = filled().await;
    let path = bench.dir.path().join("db.sqlite");
    let other = SqliteStore::open(&path, IfMissing::Refuse).await;
    let stores: [Arc<dyn Store>; 2] = [bench.store(), Arc::new(other.expect("it opens"))];
    for round in 0..rounds {
        let token = crate::store::battery::token(round, None);
        let act = Act::done(at(0), "admin:0", "token.create", "test");
        stores[0].add_token(&token, &act).await.expect("kept");
        let attempts = (0..2 * EACH).map(|number| {
            let store = Arc::clone(&stores[number % 2]);
            async move {
                let key = format!("key-{round}-{number}");
                let name = format!("a{round}-{number}");
                let wanted = crate::store::battery::redemption(round, &name, &key);
                let issue = crate::store::battery::issuing(&key);
                store.redeem(&wanted, at(1), &issue).await
            }
        });
        let mut won = 0;
        for outcome in futures_util::future::join_all(attempts).await {
            match outcome {
                Ok(_) => won += 1,
                Err(StoreError::Refused(Reason::TokenInvalid)) => {}
                Err(error) => panic!("round {round}: {error:?}"),
            }
        }
        assert_eq!(won, 1, "round {round}");
        let used_again = crate::store::battery::redemption(round, "late", "late");
        let issue = crate::store::battery::issuing("late");
        for store in &stores {
            let late = store.redeem(&used_again, at(1), &issue).await;
            assert!(
                matches!(late, Err(StoreError::Refused(Reason::TokenInvalid))),
                "round {round}: {late:?}"
            );
        }
    }
    let agents = stores[1].agents(&tenant()).await.expect("listed");
    assert_eq!(agents.len(), usize::from(rounds));
    for store in stores {
        let report = store.verify_audit(Some(&tenant())).await.expect("readable");
        assert_eq!(report.broken_at, None, "two writers, one unbroken chain");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_controllers_over_one_database_only_one_redeems_a_token() {
    redeem_at_two_controllers(25).await;
}

mod long {
    /// S13, as often as it says.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_two_controllers_only_one_redeems_a_token_two_hundred_times() {
        super::redeem_at_two_controllers(200).await;
    }
}

/// F38: while another process holds the database, writes are refused by name and in bounded time, reading goes on, and
/// all is well again when the lock goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_others_lock_refuses_writes_by_name_and_recovers() {
    let bench = filled().await;
    let mut holder = bench.locked().await;
    let acts = [Act::done(at(1), "admin:0", "a.b", "c")];
    let began = std::time::Instant::now();
    let refused = bench.store.record(Some(&tenant()), &acts).await;
    assert!(matches!(refused, Err(StoreError::Busy)), "{refused:?}");
    assert!(refused.expect_err("refused").is_transient());
    assert!(began.elapsed() < BUSY + ACQUIRE, "{:?}", began.elapsed());
    let (rules, _) = bench.store.rules(&tenant()).await.expect("readable");
    assert_eq!(rules.len(), 200);
    let_go(&mut holder).await;
    let recorded = bench.store.record(Some(&tenant()), &acts).await;
    assert!(recorded.is_ok(), "{recorded:?}");
    let report = bench.store.verify_audit(Some(&tenant())).await;
    assert_eq!(report.expect("readable").broken_at, None);
}

// A caller that leaves in the middle of its call drops it: here while its transaction waits to begin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_after_a_caller_that_left_while_its_transaction_began() {
    let bench = filled().await;
    let acts = [Act::done(at(1), "admin:0", "a.b", "c")];
    let mut holder = bench.locked().await;
    let tenant = tenant();
    let left = bench.store.record(Some(&tenant), &acts);
    let waited = tokio::time::timeout(Duration::from_millis(50), left).await;
    assert!(waited.is_err(), "{waited:?}");
    let_go(&mut holder).await;
    let recorded = bench.store.record(Some(&tenant), &acts).await;
    assert!(recorded.is_ok(), "{recorded:?}");
    let report = bench.store.verify_audit(Some(&tenant)).await;
    assert_eq!(report.expect("readable").broken_at, None);
}
