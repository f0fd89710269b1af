//! The queue's registry, damaged on purpose.

use crate::pg::bgworker::my_pid;
use crate::pg::bgworker::pool::SlotState;
use crate::pg::fmgr::Call;
use crate::pg::{Result, catalog, security};
use crate::pg_function;
use crate::queue::registry::{self, Key, Work};

/// A process id that no server process has: beyond the kernel's greatest.
const NOBODY: i32 = 0x7FFF_FFF0;

/// Enters a worker that is not there, as if one had gone without its exit callback; if `reused`, its process id is that of another by now.
fn damage(call: &Call) -> Result<()> {
    let reused = call.int4(0) == Some(1);
    let key = Key {
        database: catalog::current_database(),
        role: security::current_role(),
    };
    let registry = registry::lock()?;
    if let Some(slot) = registry
        .slots
        .iter_mut()
        .find(|slot| slot.state == SlotState::Free)
    {
        slot.state = SlotState::Attached;
        slot.ready = true;
        slot.pid = if reused { my_pid() } else { NOBODY };
        slot.key = key;
        slot.payload = Work::new();
    }
    Ok(())
}
pg_function!(
    pgbq_test_damage_registry,
    pg_finfo_pgbq_test_damage_registry,
    damage
);
