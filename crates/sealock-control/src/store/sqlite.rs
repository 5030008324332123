//! The store in one SQLite file: a single writer, several readers, every commit on the disk before it is confirmed.
//!
//! A damaged file is refused at start, with the way out, and never replaced by an empty one: an empty store would
//! forget revocations and tokens. After a write that the disk did not confirm nothing is written until a restart,
//! because what the kernel holds and what the disk holds may differ from then on.
//! One file per area below, each with functions over an open transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use sealock_core::address::HostPort;
use sealock_core::api::audit::{AuditRow, VerifyResponse};
use sealock_core::api::policy::{ApplyResponse, Origin, RuleRow};
use sealock_core::api::service::ServiceRow;
use sealock_core::identity::{AgentId, Principal};
use sealock_core::name::{AgentName, ServiceName, TenantName};
use sealock_core::policy::{Rule, RuleId};
use sealock_core::reason::Reason;
use sealock_core::view::{Entries, ViewVersion};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{Connection, SqlSafeStr, Sqlite, Transaction};

use super::{
    Act, AgentRow, Apply, AuditQuery, Certificate, Counts, Holder, Issue, Keep, MayProvide,
    Recovery, Redemption, Registration, RelayRow, RootRow, RootState, Store, StoreError, TokenRow,
};

mod audit;
mod identity;
mod recover;
mod registry;
mod rules;

const BUSY: Duration = Duration::from_secs(5); // a backup tool may hold the lock for a moment
const ACQUIRE: Duration = Duration::from_secs(10); // the writers before us each take milliseconds
const READERS: u32 = 4;

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file is not a sound database.
    #[error(
        "the controller's database {} is damaged: {what}\nhint: stop here and restore a copy, or try `sqlite3 {} .recover | sqlite3 recovered.sqlite`; revocations and tokens may be lost, so check `sealock agent list` afterwards",
        path.display(), path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// The file is missing although it was there before.
    #[error(
        "the controller's database {} is missing, but its keys are there\nhint: restore a copy; to begin anew, move the whole state directory away",
        path.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A newer version made it.
    #[error(
        "the controller's database {} was made by a newer version\nhint: upgrade this program, or restore the copy from before the upgrade",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("the controller's database {} cannot be opened", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// The database refused.
    #[error("the controller's database {} cannot be opened", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: sqlx::Error,
    },
}

/// Whether a missing file may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfMissing {
    /// Make it: this is the first start.
    Create,
    /// Refuse: it was there before.
    Refuse,
}

/// The store in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    writer: SqlitePool,
    readers: SqlitePool,
    /// Set once the disk failed to confirm a write.
    poisoned: AtomicBool,
}

impl SqliteStore {
    /// Opens the database, checks it whole, and brings its tables up to date.
    ///
    /// # Errors
    /// When the file is damaged, missing though it should be there, or from a newer version.
    ///
    /// # Cancel safety
    /// Safe: a half-made new file has another name until it is whole.
    pub async fn open(path: &Path, if_missing: IfMissing) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io {
            path: path.to_owned(),
            source,
        };
        match std::fs::metadata(path) {
            Ok(found) if found.len() == 0 => {
                return Err(OpenError::Damaged {
                    path: path.to_owned(),
                    what: "the file is empty".to_owned(),
                });
            }
            Ok(_) => check(path).await?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => match if_missing {
                IfMissing::Create => create(path).await?,
                IfMissing::Refuse => {
                    return Err(OpenError::Missing {
                        path: path.to_owned(),
                    });
                }
            },
            Err(error) => return Err(io(error)),
        }
        let database = |source| failed_open(path, source);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE)
            .connect_with(writing(path))
            .await
            .map_err(database)?;
        migrate(path, &writer).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(ACQUIRE)
            .connect_with(options(path).read_only(true))
            .await
            .map_err(database)?;
        Ok(Self {
            writer,
            readers,
            poisoned: AtomicBool::new(false),
        })
    }

    /// Ends all connections; what was committed stays.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    async fn begin(&self) -> Result<Writing, StoreError> {
        if self.poisoned.load(Ordering::Relaxed) {
            return Err(StoreError::Unsafe);
        }
        let begun = Writing::begin(&self.writer).await;
        begun.map_err(|error| self.note(error.into()))
    }

    async fn commit(&self, transaction: Writing) -> Result<(), StoreError> {
        let committed = transaction.commit().await;
        committed.map_err(|error| self.note(error.into()))
    }

    fn note(&self, error: StoreError) -> StoreError {
        if matches!(error, StoreError::Unsafe) {
            self.poisoned.store(true, Ordering::Relaxed);
            tracing::error!("the disk did not confirm a write; no more writes until a restart");
        }
        error
    }

    async fn snapshot(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.readers.begin().await?)
    }

    #[cfg(test)]
    pub(crate) fn writer(&self) -> &SqlitePool {
        &self.writer
    }
}

/// A transaction of the one connection that writes.
///
/// One that could neither be committed nor rolled back ends with its connection: a connection that is left in the middle,
/// as by a commit that failed for want of space, would refuse every later transaction.
struct Writing {
    connection: PoolConnection<Sqlite>,
    ended: bool,
}

impl Writing {
    async fn begin(writer: &SqlitePool) -> sqlx::Result<Self> {
        // Ours before it begins: a caller that leaves meanwhile must not hand a begun transaction back to the pool.
        let mut transaction = Self {
            connection: writer.acquire().await?,
            ended: false,
        };
        // IMMEDIATE: a transaction that reads first and then writes must not lose its snapshot in between.
        sqlx::query("BEGIN IMMEDIATE")
            .execute(&mut *transaction)
            .await?;
        Ok(transaction)
    }

    async fn commit(mut self) -> sqlx::Result<()> {
        sqlx::query("COMMIT").execute(&mut *self.connection).await?;
        self.ended = true;
        Ok(())
    }

    /// Undoes it; if that fails, the end of the connection does.
    async fn roll_back(mut self) {
        let undone = sqlx::query("ROLLBACK").execute(&mut *self.connection).await;
        self.ended = undone.is_ok();
    }
}

impl Deref for Writing {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.connection
    }
}

impl DerefMut for Writing {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.ended {
            self.connection.close_on_drop();
        }
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .foreign_keys(true)
        .busy_timeout(BUSY)
}

fn writing(path: &Path) -> SqliteConnectOptions {
    options(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
}

fn failed_open(path: &Path, source: sqlx::Error) -> OpenError {
    let path = path.to_owned();
    match code(&source).map(|code| code & 0xff) {
        Some(SQLITE_CORRUPT | SQLITE_NOTADB) => OpenError::Damaged {
            path,
            what: source.to_string(),
        },
        Some(_) | None => OpenError::Database { path, source },
    }
}

/// Reads every page and every index, and follows every reference.
async fn check(path: &Path) -> Result<(), OpenError> {
    let database = |source| failed_open(path, source);
    let mut connection = SqliteConnection::connect_with(&options(path))
        .await
        .map_err(database)?;
    let found: Vec<(String,)> = sqlx::query_as("PRAGMA integrity_check(5)")
        .fetch_all(&mut connection)
        .await
        .map_err(database)?;
    let found: Vec<String> = found.into_iter().map(|(line,)| line).collect();
    if found != ["ok"] {
        return Err(OpenError::Damaged {
            path: path.to_owned(),
            what: found.join("; "),
        });
    }
    let astray = sqlx::query("PRAGMA foreign_key_check")
        .fetch_optional(&mut connection)
        .await
        .map_err(database)?;
    if astray.is_some() {
        return Err(OpenError::Damaged {
            path: path.to_owned(),
            what: "rows refer to rows that are not there".to_owned(),
        });
    }
    connection.close().await.map_err(database)
}

/// Makes the database under another name and moves it in place when it is whole.
async fn create(path: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::OpenOptionsExt;
    let io = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
        Ok(()) | Err(_) => {}
    }
    let mut open = std::fs::OpenOptions::new();
    let file = open.write(true).create_new(true).mode(0o600).open(&draft);
    drop(file.map_err(io)?);
    let plain = options(&draft).journal_mode(SqliteJournalMode::Delete);
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .connect_with(plain.synchronous(SqliteSynchronous::Full))
        .await
        .map_err(|source| failed_open(path, source))?;
    migrate(path, &pool).await?;
    pool.close().await;
    std::fs::rename(&draft, path).map_err(io)?;
    if let Some(directory) = path.parent() {
        let directory = std::fs::File::open(directory).map_err(io)?;
        directory.sync_all().map_err(io)?;
    }
    Ok(())
}

async fn migrate(path: &Path, pool: &SqlitePool) -> Result<(), OpenError> {
    let texts = [
        ("start", include_str!("../../migrations/0001_start.sql")),
        ("recover", include_str!("../../migrations/0002_recover.sql")),
        ("terms", include_str!("../../migrations/0003_terms.sql")),
    ];
    let migration = |(version, (name, text)): (i64, (&'static str, &'static str))| {
        let kind = MigrationType::Simple;
        Migration::new(version, name.into(), kind, text.into_sql_str(), false)
    };
    let migrations = (1..).zip(texts).map(migration).collect();
    let migrated = Migrator::with_migrations(migrations).run(pool).await;
    migrated.map_err(|error| {
        use sqlx::migrate::MigrateError::{VersionMissing, VersionTooNew};
        let path = path.to_owned();
        if matches!(error, VersionMissing(_) | VersionTooNew(..)) {
            return OpenError::Newer { path };
        }
        let source = sqlx::Error::Migrate(Box::new(error));
        OpenError::Database { path, source }
    })
}

// https://www.sqlite.org/rescode.html
const SQLITE_BUSY: i32 = 5;
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_FULL: i32 = 13;
const SQLITE_NOTADB: i32 = 26;
const SQLITE_IOERR_FSYNC: i32 = 1034;
const SQLITE_IOERR_DIR_FSYNC: i32 = 1290;

fn code(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match code(&error) {
            Some(SQLITE_IOERR_FSYNC | SQLITE_IOERR_DIR_FSYNC) => Self::Unsafe,
            Some(code) if code & 0xff == SQLITE_FULL => Self::Full,
            Some(code) if code & 0xff == SQLITE_BUSY => Self::Busy,
            Some(_) | None if matches!(error, sqlx::Error::PoolTimedOut) => Self::Busy,
            Some(_) | None => Self::Database(error),
        }
    }
}

fn to_ms(time: Timestamp) -> i64 {
    time.as_millisecond()
}

fn from_ms(ms: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_millisecond(ms).map_err(|_| StoreError::Unreadable("time"))
}

fn from_ms_opt(ms: Option<i64>) -> Result<Option<Timestamp>, StoreError> {
    ms.map(from_ms).transpose()
}

fn unsigned(number: i64) -> Result<u64, StoreError> {
    u64::try_from(number).map_err(|_| StoreError::Unreadable("number"))
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|_| StoreError::Unreadable("value"))
}

fn from_json<T: serde::de::DeserializeOwned>(
    what: &'static str,
    text: &str,
) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|_| StoreError::Unreadable(what))
}

fn name<T: std::str::FromStr>(what: &'static str, text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|_| StoreError::Unreadable(what))
}

/// Raises the version of a tenant's view; whoever changes what the view shows calls this in the same transaction.
async fn raise(
    connection: &mut SqliteConnection,
    tenant: &TenantName,
) -> Result<ViewVersion, StoreError> {
    let raised: Option<(i64,)> =
        sqlx::query_as("UPDATE views SET version = version + 1 WHERE tenant = ? RETURNING version")
            .bind(tenant.as_str())
            .fetch_optional(connection)
            .await?;
    let (version,) = raised.ok_or_else(|| no_tenant(tenant))?;
    Ok(ViewVersion(unsigned(version)?))
}

async fn version(
    connection: &mut SqliteConnection,
    tenant: &TenantName,
) -> Result<ViewVersion, StoreError> {
    let found: Option<(i64,)> = sqlx::query_as("SELECT version FROM views WHERE tenant = ?")
        .bind(tenant.as_str())
        .fetch_optional(connection)
        .await?;
    let (version,) = found.ok_or_else(|| no_tenant(tenant))?;
    Ok(ViewVersion(unsigned(version)?))
}

fn no_tenant(tenant: &TenantName) -> StoreError {
    StoreError::NoSuch {
        kind: "tenant",
        name: tenant.to_string(),
    }
}

/// Runs the body in a write transaction and commits it when it succeeded.
macro_rules! change {
    ($store:expr, |$connection:ident| $body:expr) => {{
        let mut transaction = $store.begin().await?;
        let $connection: &mut SqliteConnection = &mut transaction;
        match $body.await {
            Ok(done) => $store.commit(transaction).await.map(|()| done),
            Err(error) => {
                transaction.roll_back().await;
                Err($store.note(error))
            }
        }
    }};
}

/// Runs the body in a read transaction: one moment of the database.
macro_rules! look {
    ($store:expr, |$connection:ident| $body:expr) => {{
        let mut transaction = $store.snapshot().await?;
        let $connection: &mut SqliteConnection = &mut transaction;
        $body.await
    }};
}

#[tonic::async_trait]
impl Store for SqliteStore {
    async fn meta_or(&self, key: &str, value: &str) -> Result<String, StoreError> {
        change!(self, |c| identity::meta_or(c, key, value))
    }

    async fn roots(&self) -> Result<Vec<RootRow>, StoreError> {
        look!(self, |c| identity::roots(c))
    }

    async fn add_root(&self, certificate: &[u8], act: &Act) -> Result<(), StoreError> {
        change!(self, |c| identity::add_root(c, certificate, act))
    }

    async fn set_root(
        &self,
        certificate: &[u8],
        state: RootState,
        act: &Act,
    ) -> Result<(), StoreError> {
        change!(self, |c| identity::set_root(c, certificate, state, act))
    }

    async fn add_tenant(
        &self,
        tenant: &TenantName,
        rules: &[Rule],
        act: &Act,
    ) -> Result<bool, StoreError> {
        change!(self, |c| rules::add_tenant(c, tenant, rules, act))
    }

    async fn versions(&self) -> Result<BTreeMap<TenantName, ViewVersion>, StoreError> {
        look!(self, |c| rules::versions(c))
    }

    async fn raise_view(
        &self,
        tenant: &TenantName,
        than: ViewVersion,
        act: &Act,
    ) -> Result<(), StoreError> {
        change!(self, |c| rules::raise_view(c, tenant, than, act))
    }

    async fn view(&self, tenant: &TenantName) -> Result<(ViewVersion, Entries), StoreError> {
        look!(self, |c| rules::view(c, tenant))
    }

    async fn counts(&self, tenant: &TenantName) -> Result<Counts, StoreError> {
        look!(self, |c| rules::counts(c, tenant))
    }

    async fn add_token(&self, token: &TokenRow, act: &Act) -> Result<(), StoreError> {
        change!(self, |c| identity::add_token(c, token, act))
    }

    async fn redeem(
        &self,
        redemption: &Redemption,
        now: Timestamp,
        issue: &Issue<'_>,
    ) -> Result<(Principal, Certificate), StoreError> {
        change!(self, |c| identity::redeem(c, redemption, now, issue))
    }

    async fn admits(&self, holder: &Holder) -> Result<bool, StoreError> {
        look!(self, |c| identity::admits(c, holder))
    }

    async fn renew(
        &self,
        holder: &Holder,
        key_digest: &str,
        now: Timestamp,
        issue: &Issue<'_>,
    ) -> Result<Certificate, StoreError> {
        change!(self, |c| identity::renew(c, holder, key_digest, now, issue))
    }

    async fn recover(
        &self,
        recovery: &Recovery,
        now: Timestamp,
        issue: &Issue<'_>,
    ) -> Result<Certificate, StoreError> {
        change!(self, |c| recover::recover(c, recovery, now, issue))
    }

    async fn keeps(&self, holder: &Holder, now: Timestamp) -> Result<(), StoreError> {
        change!(self, |c| recover::keeps(c, holder, now))
    }

    async fn issue_own(
        &self,
        principal: &Principal,
        now: Timestamp,
        issue: &Issue<'_>,
    ) -> Result<Certificate, StoreError> {
        change!(self, |c| identity::issue_own(c, principal, now, issue))
    }

    async fn agents(&self, tenant: &TenantName) -> Result<Vec<AgentRow>, StoreError> {
        look!(self, |c| registry::agents(c, tenant))
    }

    async fn revoke_agent(
        &self,
        agent: &AgentId,
        act: &Act,
    ) -> Result<(u64, ViewVersion), StoreError> {
        change!(self, |c| identity::revoke_agent(c, agent, act))
    }

    async fn register(
        &self,
        registration: &Registration,
        now: Timestamp,
        may_provide: &MayProvide<'_>,
    ) -> Result<BTreeMap<ServiceName, Reason>, StoreError> {
        change!(self, |c| registry::register(
            c,
            registration,
            now,
            may_provide
        ))
    }

    async fn unregister(
        &self,
        agent: &AgentId,
        generation: u64,
        services: &BTreeSet<ServiceName>,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        change!(self, |c| registry::unregister(
            c, agent, generation, services, now
        ))
    }

    async fn services(
        &self,
        tenant: &TenantName,
        now: Timestamp,
    ) -> Result<Vec<ServiceRow>, StoreError> {
        look!(self, |c| registry::services(c, tenant, now))
    }

    async fn remove_service(
        &self,
        tenant: &TenantName,
        service: &ServiceName,
        agent: Option<&AgentName>,
        act: &Act,
    ) -> Result<(u64, ViewVersion), StoreError> {
        change!(self, |c| registry::remove_service(
            c, tenant, service, agent, act
        ))
    }

    async fn extend_leases(&self, until: Timestamp) -> Result<(), StoreError> {
        change!(self, |c| registry::extend_leases(c, until))
    }

    async fn rules(&self, tenant: &TenantName) -> Result<(Vec<RuleRow>, ViewVersion), StoreError> {
        look!(self, |c| rules::rules(c, tenant))
    }

    async fn add_rule(
        &self,
        tenant: &TenantName,
        rule: &Rule,
        origin: Origin,
        act: &Act,
    ) -> Result<ViewVersion, StoreError> {
        change!(self, |c| rules::add_rule(c, tenant, rule, origin, act))
    }

    async fn remove_rule(
        &self,
        tenant: &TenantName,
        id: &RuleId,
        act: &Act,
    ) -> Result<(Rule, ViewVersion), StoreError> {
        change!(self, |c| rules::remove_rule(c, tenant, id, act))
    }

    async fn apply_rules(
        &self,
        tenant: &TenantName,
        rules: &[Rule],
        mode: Apply,
        act: &Act,
    ) -> Result<ApplyResponse, StoreError> {
        match mode {
            Apply::Now => change!(self, |c| rules::apply(c, tenant, rules, act)),
            Apply::DryRun => look!(self, |c| rules::preview(c, tenant, rules)),
        }
    }

    async fn relays(&self) -> Result<Vec<RelayRow>, StoreError> {
        look!(self, |c| registry::relays(c))
    }

    async fn seen(
        &self,
        principal: &Principal,
        addresses: Option<&[HostPort]>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        change!(self, |c| registry::seen(c, principal, addresses, now))
    }

    async fn record(&self, tenant: Option<&TenantName>, acts: &[Act]) -> Result<(), StoreError> {
        change!(self, |c| audit::record(c, tenant, acts))
    }

    async fn audit(&self, query: &AuditQuery) -> Result<(Vec<AuditRow>, bool), StoreError> {
        look!(self, |c| audit::rows(c, query))
    }

    async fn verify_audit(
        &self,
        tenant: Option<&TenantName>,
    ) -> Result<VerifyResponse, StoreError> {
        look!(self, |c| audit::verify(c, tenant))
    }

    async fn tidy(&self, now: Timestamp, keep: Keep) -> Result<(), StoreError> {
        change!(self, |c| identity::tidy(c, now, keep))?;
        change!(self, |c| audit::prune(c, keep.audit_from))
    }
}

#[cfg(test)]
mod tests;
