//! Kinds of faults, and which of them a run is made of.

use fastrand::Rng;

use super::pick;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    // the server goes down, or all its processes do
    KillWorker,
    SegvWorker,
    KillLauncher,
    KillKeeper,
    KillCheckpointer,
    KillWalWriter,
    KillClient,
    KillPostmaster,
    PowerLoss,
    StopImmediate,
    StopFast,
    // a process is ended or cancelled, and the server lives on
    TerminateWorker,
    TerminateLauncher,
    TerminateKeeper,
    TerminateClient,
    CancelWorker,
    CancelLauncher,
    CancelKeeper,
    // something runs out
    WorkerSlots,
    Connections,
    // a DBA is at work
    Reload,
    BadReload,
    Pause,
    AlterRole,
    LockTable,
    LockRows,
    VacuumFull,
    Reindex,
    Checkpoint,
    Calibrate,
    // in the scratch database only
    Truncate,
    DropExtension,
    DropDatabase,
    DropRole,
}

use Fault::*;

/// The server goes down.
const HARD: &[(Fault, usize)] = &[
    (KillWorker, 4),
    (SegvWorker, 2),
    (KillLauncher, 2),
    (KillKeeper, 2),
    (KillCheckpointer, 1),
    (KillWalWriter, 1),
    (KillClient, 1),
    (KillPostmaster, 2),
    (PowerLoss, 3),
    (StopImmediate, 3),
    (StopFast, 3),
];

/// The server lives on.
const GENTLE: &[(Fault, usize)] = &[
    (TerminateWorker, 4),
    (TerminateLauncher, 3),
    (TerminateKeeper, 2),
    (TerminateClient, 1),
    (CancelWorker, 4),
    (CancelLauncher, 1),
    (CancelKeeper, 2),
    (WorkerSlots, 2),
    (Connections, 1),
    (Reload, 3),
    (BadReload, 1),
    (Pause, 1),
    (AlterRole, 2),
    (LockTable, 2),
    (LockRows, 2),
    (VacuumFull, 2),
    (Reindex, 1),
    (Checkpoint, 1),
    (Calibrate, 1),
    (Truncate, 1),
    (DropExtension, 2),
    (DropDatabase, 2),
    (DropRole, 2),
];

/// What a run is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    All,
    Gentle,
    Hard,
    /// Stops in the midst of writing the WAL, and nothing else.
    WalCuts,
}

impl Mix {
    /// As the seed says.
    pub fn of_seed(seed: u64) -> Self {
        match seed % 4 {
            0 | 2 => Self::All,
            1 => Self::Gentle,
            _ => Self::Hard,
        }
    }

    /// The next fault.
    pub fn choose(self, random: &mut Rng) -> Fault {
        let half = if random.bool() { HARD } else { GENTLE };
        let faults = match self {
            Self::All => half,
            Self::Gentle => GENTLE,
            Self::Hard => HARD,
            Self::WalCuts => &[(StopImmediate, 3), (PowerLoss, 1)],
        };
        pick(faults, random)
    }
}

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            KillWorker => "kill -9 of a worker",
            SegvWorker => "SIGSEGV of a worker",
            KillLauncher => "kill -9 of the launcher",
            KillKeeper => "kill -9 of a keeper",
            KillCheckpointer => "kill -9 of the checkpointer",
            KillWalWriter => "kill -9 of the WAL writer",
            KillClient => "kill -9 of a client's backend",
            KillPostmaster => "kill -9 of the postmaster",
            PowerLoss => "kill -9 of everything",
            StopImmediate => "immediate stop",
            StopFast => "fast stop",
            TerminateWorker => "pg_terminate_backend of a worker",
            TerminateLauncher => "pg_terminate_backend of the launcher",
            TerminateKeeper => "pg_terminate_backend of a keeper",
            TerminateClient => "pg_terminate_backend of a client",
            CancelWorker => "pg_cancel_backend of a worker",
            CancelLauncher => "pg_cancel_backend of the launcher",
            CancelKeeper => "pg_cancel_backend of a keeper",
            WorkerSlots => "out of worker slots",
            Connections => "out of connections",
            Reload => "reload",
            BadReload => "reload of a wrong topic_config",
            Pause => "pause",
            AlterRole => "ALTER ROLE ... SET",
            LockTable => "LOCK TABLE",
            LockRows => "SELECT ... FOR UPDATE of tasks",
            VacuumFull => "VACUUM FULL",
            Reindex => "REINDEX CONCURRENTLY",
            Checkpoint => "CHECKPOINT",
            Calibrate => "calibrate",
            Truncate => "TRUNCATE",
            DropExtension => "DROP EXTENSION",
            DropDatabase => "DROP DATABASE",
            DropRole => "DROP ROLE",
        }
    }
}
