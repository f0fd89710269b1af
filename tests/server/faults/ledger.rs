//! What the sessions of the load were told, and what was done to the server: the other side of the account.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::SystemTime;

/// A task whose enqueueing was acknowledged.
#[derive(Debug, Clone)]
pub struct Sent {
    pub database: String,
    pub id: i64,
    pub marker: i64,
    /// The commit was flushed: no crash may take it back.
    pub durable: bool,
    pub acknowledged: SystemTime,
}

/// From when to when a fault can have had consequences.
#[derive(Debug, Clone)]
pub struct Disturbance {
    pub began: SystemTime,
    pub ended: SystemTime,
}

/// Shared by all threads of a run.
#[derive(Debug, Default)]
pub struct Ledger {
    next_marker: AtomicI64,
    sent: Mutex<Vec<Sent>>,
    disturbances: Mutex<Vec<Disturbance>>,
    faults: Mutex<BTreeMap<&'static str, u64>>,
    killed: Mutex<Vec<i32>>,
    complaints: Mutex<Vec<String>>,
}

impl Ledger {
    /// A number for a task, which no other of the run has; the next one is its child's.
    pub fn marker(&self) -> i64 {
        self.next_marker.fetch_add(2, Ordering::Relaxed) + 2
    }

    pub fn sent(&self, sent: Sent) {
        self.sent.lock().expect("no panic").push(sent);
    }

    pub fn all_sent(&self) -> Vec<Sent> {
        self.sent.lock().expect("no panic").clone()
    }

    pub fn disturbed(&self, began: SystemTime) {
        let ended = SystemTime::now();
        let disturbance = Disturbance { began, ended };
        self.disturbances
            .lock()
            .expect("no panic")
            .push(disturbance);
    }

    pub fn disturbances(&self) -> Vec<Disturbance> {
        self.disturbances.lock().expect("no panic").clone()
    }

    /// A fault has been made.
    pub fn count(&self, fault: &'static str) {
        *self
            .faults
            .lock()
            .expect("no panic")
            .entry(fault)
            .or_default() += 1;
    }

    pub fn faults(&self) -> BTreeMap<&'static str, u64> {
        self.faults.lock().expect("no panic").clone()
    }

    /// We sent this process a deadly signal.
    pub fn killed(&self, pid: i32) {
        self.killed.lock().expect("no panic").push(pid);
    }

    pub fn all_killed(&self) -> Vec<i32> {
        self.killed.lock().expect("no panic").clone()
    }

    /// Something that must not happen was seen while the load ran.
    pub fn complain(&self, what: String) {
        self.complaints.lock().expect("no panic").push(what);
    }

    pub fn complaints(&self) -> Vec<String> {
        self.complaints.lock().expect("no panic").clone()
    }
}
