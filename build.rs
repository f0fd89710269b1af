//! Binds the crate to the server that `pg_config` describes: a cfg for its major version, Rust
//! declarations of just those parts of its headers that we use, and the C shim compiled against them.
//!
//! `PG_CONFIG` names another `pg_config` than the first one in the PATH.

use std::path::PathBuf;
use std::process::Command;

/// The server functions that the safe layer calls; each has a home in one module of `src/pg`.
const FUNCTIONS: &[&str] = &[
    // datum
    "cstring_to_text_with_len",
    "pg_mbcliplen",
    // mem
    "AllocSetContextCreateInternal",
    "MemoryContextAllocExtended",
    "MemoryContextDelete",
    "pfree",
    // xact
    "CommitTransactionCommand",
    "GetCurrentTimestamp",
    "GetCurrentTransactionStartTimestamp",
    "PreventCommandDuringRecovery",
    "PreventCommandIfParallelMode",
    "PreventCommandIfReadOnly",
    "RegisterXactCallback",
    "SetCurrentStatementStartTimestamp",
    "IsTransactionState",
    // snapshot
    "GetTransactionSnapshot",
    "ActiveSnapshotSet",
    "PopActiveSnapshot",
    "PushActiveSnapshot",
    // catalog
    "CacheRegisterRelcacheCallback",
    "CacheRegisterSyscacheCallback",
    "get_attnum",
    "get_database_name",
    "get_role_oid",
    "nextval_internal",
    "GetUserIdAndSecContext",
    "SetUserIdAndSecContext",
    "GetUserId",
    "superuser",
    "GetSystemIdentifier",
    // guc
    "DefineCustomEnumVariable",
    "DefineCustomIntVariable",
    "DefineCustomStringVariable",
    "EmitWarningsOnPlaceholders",
    "MarkGUCPrefixReserved",
    "ProcessConfigFile",
    "SetConfigOption",
    // lwlock, shmem, latch
    "GetNamedLWLockTranche",
    "LWLockAcquire",
    "LWLockHeldByMe",
    "LWLockRelease",
    "WaitEventExtensionNew",
    "RequestAddinShmemSpace",
    "RequestNamedLWLockTranche",
    "SetLatch",
    "ShmemInitStruct",
    // condition
    "ConditionVariableBroadcast",
    "ConditionVariableCancelSleep",
    "ConditionVariableInit",
    "ConditionVariablePrepareToSleep",
    "ConditionVariableTimedSleep",
    // spi
    "SPI_connect",
    "SPI_execute_with_args",
    "SPI_finish",
    "SPI_getbinval",
    "SPI_gettypeid",
    // background workers
    "BackgroundWorkerInitializeConnection",
    "BackgroundWorkerInitializeConnectionByOid",
    "GetBackgroundWorkerPid",
    "RegisterBackgroundWorker",
    "RegisterDynamicBackgroundWorker",
    "TerminateBackgroundWorker",
    "before_shmem_exit",
    "proc_exit",
    "process_session_preload_libraries",
    "pgstat_report_stat",
];

const VARIABLES: &[&str] = &[
    "CurrentMemoryContext",
    "IsBinaryUpgrade",
    "MyDatabaseId",
    "QueryCancelHoldoffCount",
    "MyBgworkerEntry",
    "MyLatch",
    "MyProcPid",
    "SPI_processed",
    "SPI_tuptable",
    "TopMemoryContext",
    "XactDeferrable",
    "XactIsoLevel",
    "XactReadOnly",
    "max_worker_processes",
    "namespace_search_path",
    "process_shared_preload_libraries_in_progress",
    "shmem_request_hook",
    "shmem_startup_hook",
    "synchronous_commit",
];

const TYPES: &[&str] = &[
    "BackgroundWorker",
    "BackgroundWorkerHandle",
    "BgwHandleStatus",
    "Datum",
    "ErrorData",
    "FunctionCallInfo",
    "Latch",
    "LWLock",
    "Oid",
    "XactEvent",
    // enums, for their constants
    "BackendState",
    "GucContext",
    "GucSource",
    "SyncCommitLevel",
    "SysCacheIdentifier",
];

const CONSTANTS: &[&str] = &[
    "BGWORKER_.*",
    "BGW_.*",
    "BT.*StrategyNumber",
    "DEBUG1|LOG|WARNING|ERROR",
    "GUC_UNIT_MS|GUC_UNIT_S",
    "MCXT_ALLOC_.*",
    "PG_WAIT_EXTENSION",
    "SECURITY_LOCAL_USERID_CHANGE",
    "XACT_READ_COMMITTED",
];

fn main() {
    let pg_config = std::env::var("PG_CONFIG").unwrap_or_else(|_| "pg_config".into());
    let ask = |question: &str| -> String {
        let output = Command::new(&pg_config)
            .arg(question)
            .output()
            .unwrap_or_else(|error| {
                panic!("could not run {pg_config}: {error}\nset PG_CONFIG, or install postgresql-server-dev-15")
            });
        assert!(output.status.success(), "{pg_config} {question} failed");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };

    println!("cargo:rerun-if-env-changed=PG_CONFIG");
    println!("cargo:rerun-if-changed=wrapper.h");
    println!("cargo:rerun-if-changed=src/shim");

    let major = major_version(&ask("--version"));
    assert!(
        (13..=19).contains(&major),
        "PostgreSQL {major} is not supported: 13 to 18 are, and 19 can be tried"
    );
    println!("cargo:rustc-cfg=pg{major}");

    let includes = ask("--includedir-server");
    println!("cargo:rerun-if-changed={includes}/pg_config.h");
    // cppflags hold the include paths of the libraries that the headers mention (libxml2, ICU).
    let mut flags: Vec<String> = ask("--cppflags")
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    flags.push(format!("-I{includes}"));
    flags.push("-Isrc/shim".into());

    generate_bindings(&flags);
    compile_shim(&flags);
}

/// "PostgreSQL 15.18 (Debian 15.18-0+deb12u1)" is 15; so are "15beta1" and "15devel".
fn major_version(version: &str) -> u32 {
    version
        .split_whitespace()
        .nth(1)
        .map(|number| {
            number
                .chars()
                .take_while(char::is_ascii_digit)
                .collect::<String>()
        })
        .and_then(|digits| digits.parse().ok())
        .unwrap_or_else(|| panic!("pg_config --version says {version:?}, which names no version"))
}

fn generate_bindings(flags: &[String]) {
    let mut builder = bindgen::Builder::default()
        .header("wrapper.h")
        .clang_args(flags)
        // Any of these functions may leave by longjmp.
        .override_abi(bindgen::Abi::CUnwind, ".*")
        .rust_edition(bindgen::RustEdition::Edition2024)
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_debug(false)
        .layout_tests(false)
        .generate_comments(false)
        // From 18 on the headers say _Noreturn where they can, which bindgen does not understand.
        .clang_arg("-D_Noreturn=__attribute__((noreturn))")
        .blocklist_type("(__)?sigjmp_buf|__jmp_buf_tag|jmp_buf")
        .raw_line("pub type sigjmp_buf = u8;")
        .allowlist_function("pgbq_.*")
        .allowlist_type("Pgbq.*")
        .allowlist_var("(PGBQ|pgbq)_.*");
    for function in FUNCTIONS {
        builder = builder.allowlist_function(function);
    }
    for variable in VARIABLES.iter().chain(CONSTANTS) {
        builder = builder.allowlist_var(variable);
    }
    for name in TYPES {
        builder = builder.allowlist_type(name);
    }
    let output = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    builder
        .generate()
        .expect("bindgen could not read the server's headers (is postgresql-server-dev installed?)")
        .write_to_file(output.join("bindings.rs"))
        .expect("OUT_DIR is writable");
}

fn compile_shim(flags: &[String]) {
    let mut build = cc::Build::new();
    let mut sources: Vec<PathBuf> = std::fs::read_dir("src/shim")
        .expect("src/shim is there")
        .map(|entry| entry.expect("src/shim is readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "c"))
        .collect();
    sources.sort();
    for flag in flags {
        build.flag(flag);
    }
    build
        .files(sources)
        .std("gnu99")
        .warnings(true)
        .flag("-Werror=implicit-function-declaration")
        .flag("-Wno-unused-parameter")
        .flag("-Wno-sign-compare")
        .flag("-Wno-missing-field-initializers")
        // As the server itself is built: its code relies on both.
        .flag("-fno-strict-aliasing")
        .flag("-fwrapv")
        .warnings_into_errors(true)
        .compile("pgbq_shim");
}
