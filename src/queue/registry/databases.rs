//! The databases that a keeper has visited, and those that a command wants without sessions.

use super::Registry;
use crate::pg::Oid;
use crate::pg::bgworker::pool::SlotState;

/// Databases that are kept in mind; the others are visited by a keeper again when they have work.
pub(super) const MOST_DATABASES: usize = 512;

/// Commands at the same time that want one database without sessions; for those beyond, nobody is held back.
const MOST_CLOSERS: usize = 8;

/// A database in which a keeper has been.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Database {
    /// Which.
    pub oid: Oid,
    /// What the last server's tasks left `running` has been dealt with.
    pub recovered: bool,
    /// A keeper shall look at it.
    pub wants_keeper: bool,
    /// A keeper has come to its end since the launcher looked last.
    pub visited: bool,
    /// The processes that want it without sessions; 0 is nobody.
    closed_by: [i32; MOST_CLOSERS],
}

impl Database {
    /// Takes back that a process has closed it; true if it had.
    fn reopen_for(&mut self, pid: i32) -> bool {
        let closer = self.closed_by.iter_mut().find(|closer| **closer == pid);
        closer.map(|closer| *closer = 0).is_some()
    }
}

impl Registry {
    /// The databases.
    pub fn databases(&mut self) -> &mut [Database] {
        &mut self.databases[..self.header.database_count as usize]
    }

    /// The entry of a database.
    pub fn database(&mut self, oid: Oid) -> Option<&mut Database> {
        self.databases()
            .iter_mut()
            .find(|database| database.oid == oid)
    }

    /// The entry of a database, made if it was not there; `None` if there is no room.
    pub fn add_database(&mut self, oid: Oid) -> Option<&mut Database> {
        if self.database(oid).is_none() {
            if self.header.database_count as usize == MOST_DATABASES {
                self.forget_a_quiet_database();
            }
            let count = self.header.database_count as usize;
            if count == MOST_DATABASES {
                return None;
            }
            self.databases[count] = Database {
                oid,
                recovered: false,
                wants_keeper: false,
                visited: false,
                closed_by: [0; MOST_CLOSERS],
            };
            self.header.database_count += 1;
        }
        self.database(oid)
    }

    /// A database that nobody works in and nobody waits for is visited by a keeper again should that change.
    fn forget_a_quiet_database(&mut self) {
        let quiet = self.databases().to_vec().into_iter().find(|database| {
            !database.wants_keeper
                && database.closed_by == [0; MOST_CLOSERS]
                && !self
                    .slots
                    .iter()
                    .any(|s| s.state != SlotState::Free && s.key.database == database.oid)
                && !self
                    .demands()
                    .iter()
                    .any(|demand| demand.key.database == database.oid)
        });
        if let Some(database) = quiet {
            self.remove_database(database.oid);
        }
    }

    /// Sends away who is in a database, and holds back others until that process has called
    /// [`open_database`](Self::open_database).
    pub fn close_database(&mut self, oid: Oid, pid: i32) {
        if let Some(database) = self.add_database(oid)
            && !database.closed_by.contains(&pid)
            && let Some(closer) = database.closed_by.iter_mut().find(|closer| **closer == 0)
        {
            *closer = pid;
        }
        for slot in self.slots.iter_mut() {
            if slot.state != SlotState::Free && slot.key.database == oid {
                slot.payload.leaving = true;
                slot.latch.set();
            }
        }
    }

    /// Takes [`close_database`](Self::close_database) back.
    pub fn open_database(&mut self, oid: Oid, pid: i32) {
        if let Some(database) = self.database(oid) {
            database.reopen_for(pid);
        }
    }

    /// Takes back all that a process has closed; true if that was any.
    pub fn open_databases_of(&mut self, pid: i32) -> bool {
        let mut any = false;
        for database in self.databases() {
            any |= database.reopen_for(pid);
        }
        any
    }

    /// Whether processes may be started in a database.
    pub fn is_open(&mut self, oid: Oid) -> bool {
        self.database(oid)
            .is_none_or(|database| database.closed_by == [0; MOST_CLOSERS])
    }

    /// Forgets a database.
    pub fn remove_database(&mut self, oid: Oid) {
        let count = self.header.database_count as usize;
        if let Some(i) = self
            .databases()
            .iter()
            .position(|database| database.oid == oid)
        {
            self.databases[i] = self.databases[count - 1];
            self.header.database_count -= 1;
        }
    }

    /// Asks for a keeper in a database. The caller wakes the launcher.
    pub fn want_keeper(&mut self, database: Oid) {
        match self.add_database(database) {
            Some(database) => database.wants_keeper = true,
            None => self.header.overflow = true,
        }
    }
}
