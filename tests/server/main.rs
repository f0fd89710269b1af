//! Integration tests: each starts its own PostgreSQL with the installed extension and works through
//! ordinary connections. `PG_CONFIG` names the server under test; root runs it as `PGBQ_TEST_USER`
//! (default `postgres`).

mod harness;

mod crash;
mod encodings;
mod isolation;
mod limits;
mod not_preloaded;
mod processes;
mod runs;
mod safe_layer;
mod security;
mod session;
