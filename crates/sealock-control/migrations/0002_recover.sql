-- When the node first showed that it keeps this certificate on its disk; what it kept before is then of no more use.
ALTER TABLE certificates ADD COLUMN kept INTEGER;

-- Proofs of nodes that came back, each good once; times are milliseconds since 1970.
CREATE TABLE recoveries (
    proof BLOB PRIMARY KEY,
    at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
