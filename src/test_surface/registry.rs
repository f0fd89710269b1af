//! The queue's registry, damaged on purpose.

use crate::pg::bgworker::pool::SlotState;
use crate::pg::fmgr::Call;
use crate::pg::{Result, catalog, security};
use crate::pg_function;
use crate::queue::registry::{self, Key, Work};

/// A process id that no server process has: beyond the kernel's greatest.
const NOBODY: i32 = 0x7FFF_FFF0;

/// Enters a worker that is not there, as if one had gone without its exit callback.
fn damage(_call: &Call) -> Result<()> {
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
        slot.pid = NOBODY;
        slot.key = key;
        slot.payload = Work {
            connected: true,
            ..Work::new()
        };
    }
    Ok(())
}
pg_function!(
    pgbq_test_damage_registry,
    pg_finfo_pgbq_test_damage_registry,
    damage
);
