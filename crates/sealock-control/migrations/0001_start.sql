-- Times are milliseconds since 1970; digests and serial numbers are lower-case hex; lists and maps are JSON.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE roots (
    id          INTEGER PRIMARY KEY,
    state       TEXT NOT NULL CHECK (state IN ('prepared', 'active', 'tainted', 'revoked')),
    certificate BLOB NOT NULL UNIQUE,
    created     INTEGER NOT NULL
) STRICT;

-- At most one root signs.
CREATE UNIQUE INDEX roots_active ON roots (state) WHERE state = 'active';

CREATE TABLE tenants (
    name    TEXT PRIMARY KEY,
    created INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE views (
    tenant  TEXT PRIMARY KEY REFERENCES tenants (name),
    version INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (
    hash    BLOB PRIMARY KEY,
    role    TEXT NOT NULL CHECK (role IN ('agent', 'relay')),
    tenant  TEXT REFERENCES tenants (name),
    name    TEXT,
    labels  TEXT NOT NULL,
    groups  TEXT NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    used_at INTEGER,
    used_by TEXT,
    CHECK ((role = 'agent') = (tenant IS NOT NULL))
) STRICT, WITHOUT ROWID;

CREATE TABLE agents (
    tenant    TEXT NOT NULL REFERENCES tenants (name),
    name      TEXT NOT NULL,
    labels    TEXT NOT NULL,
    groups    TEXT NOT NULL,
    created   INTEGER NOT NULL,
    revoked   INTEGER,
    last_seen INTEGER,
    PRIMARY KEY (tenant, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE relays (
    name      TEXT PRIMARY KEY,
    addresses TEXT NOT NULL,
    created   INTEGER NOT NULL,
    last_seen INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE certificates (
    serial     TEXT PRIMARY KEY,
    key_digest TEXT NOT NULL,
    holder     TEXT NOT NULL,
    tenant     TEXT REFERENCES tenants (name),
    issued     INTEGER NOT NULL,
    not_after  INTEGER NOT NULL,
    revoked    INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX certificates_holder ON certificates (holder, not_after);
CREATE INDEX certificates_key ON certificates (key_digest);

-- Outlives the certificates: a key that was revoked once never gets a certificate again.
CREATE TABLE revoked_keys (
    key_digest TEXT PRIMARY KEY,
    revoked    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE services (
    tenant  TEXT NOT NULL REFERENCES tenants (name),
    name    TEXT NOT NULL,
    owner   TEXT NOT NULL,
    labels  TEXT NOT NULL,
    created INTEGER NOT NULL,
    PRIMARY KEY (tenant, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE registrations (
    tenant     TEXT NOT NULL,
    service    TEXT NOT NULL,
    agent      TEXT NOT NULL,
    generation INTEGER NOT NULL,
    lease_ends INTEGER NOT NULL,
    created    INTEGER NOT NULL,
    PRIMARY KEY (tenant, service, agent),
    FOREIGN KEY (tenant, service) REFERENCES services (tenant, name) ON DELETE CASCADE,
    FOREIGN KEY (tenant, agent) REFERENCES agents (tenant, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE rules (
    tenant  TEXT NOT NULL REFERENCES tenants (name),
    id      TEXT NOT NULL,
    origin  TEXT NOT NULL CHECK (origin IN ('starter', 'command', 'file')),
    rule    TEXT NOT NULL,
    created INTEGER NOT NULL,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;

-- The tenant '' holds what belongs to none.
CREATE TABLE audit (
    tenant  TEXT NOT NULL,
    number  INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    actor   TEXT NOT NULL,
    action  TEXT NOT NULL,
    subject TEXT NOT NULL,
    reason  INTEGER NOT NULL,
    detail  TEXT NOT NULL,
    hash    BLOB NOT NULL,
    PRIMARY KEY (tenant, number)
) STRICT, WITHOUT ROWID;

-- Where each chain ends, and where its kept part begins: the number and hash of the last row that retention took.
CREATE TABLE chains (
    tenant        TEXT PRIMARY KEY,
    number        INTEGER NOT NULL,
    hash          BLOB NOT NULL,
    anchor_number INTEGER NOT NULL,
    anchor_hash   BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER audit_is_never_edited BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE (ABORT, 'audit rows are never edited');
END;

CREATE TRIGGER audit_is_only_pruned BEFORE DELETE ON audit
WHEN OLD.number > (SELECT anchor_number FROM chains WHERE tenant = OLD.tenant)
BEGIN
    SELECT RAISE (ABORT, 'audit rows go by retention alone');
END;
