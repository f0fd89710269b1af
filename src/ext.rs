//! What PostgreSQL sees: the library's entry points and the SQL functions. Each only calls the queue.

use crate::pg::fmgr::Call;
use crate::pg::{Result, boundary, callback, control, install_panic_hook, shmem};
use crate::queue::{enqueue, keeper, launcher, manage, registry, settings, store, wake, worker};
use crate::{pg_function, worker_main};

/// The magic block (fmgr.h): for which server the library was built.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn Pg_magic_func() -> *const crate::pg_sys::Pg_magic_struct {
    // SAFETY: returns the address of a constant.
    unsafe { crate::pg_sys::pgbq_magic() }
}

/// Called when the library is loaded. Only the postmaster, through shared_preload_libraries, gets a queue out of it; in any other
/// process the functions say what is missing.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn _PG_init() {
    boundary(|| {
        install_panic_hook();
        settings::define()?;
        if !control::is_preloading() {
            return Ok(());
        }
        shmem::hooks(|| boundary(request), || boundary(startup));
        #[cfg(feature = "pg_test")]
        crate::test_surface::proof::preload()?;
        callback::on_utility(wake::utility_done, wake::empty_database);
        // pg_upgrade's servers run nothing
        if !control::is_binary_upgrade() {
            launcher::register()?;
        }
        Ok(())
    });
}

fn request() -> Result<()> {
    registry::request()?;
    #[cfg(feature = "pg_test")]
    crate::test_surface::proof::request()?;
    Ok(())
}

fn startup() -> Result<()> {
    registry::startup()?;
    #[cfg(feature = "pg_test")]
    crate::test_surface::proof::startup()?;
    Ok(())
}

worker_main!(pg_background_queue_launcher_main, launcher::main);
worker_main!(pg_background_queue_worker_main, worker::main);
worker_main!(pg_background_queue_keeper_main, keeper::main);

fn enqueue_task(call: &Call) -> Result<i64> {
    let options = enqueue::Options {
        priority: call.int4(2),
        run_at: call.timestamptz(3),
        retry_count: call.int4(4),
        timeout_ms: call.interval_ms(5),
    };
    enqueue::enqueue(call.text(0)?.as_deref(), call.text(1)?.as_deref(), options)
}
pg_function!(
    pg_background_queue_enqueue,
    pg_finfo_pg_background_queue_enqueue,
    enqueue_task
);
// the name of the C extension that was here before
pg_function!(
    pg_background_enqueue,
    pg_finfo_pg_background_enqueue,
    enqueue_task
);

fn delete(call: &Call) -> Result<i64> {
    manage::delete(call.int8_array(0)?.as_deref())
}
pg_function!(
    pg_background_queue_delete,
    pg_finfo_pg_background_queue_delete,
    delete
);

fn release(call: &Call) -> Result<i64> {
    manage::release(call.int8_array(0)?.as_deref())
}
pg_function!(
    pg_background_queue_release,
    pg_finfo_pg_background_queue_release,
    release
);

fn cancel(call: &Call) -> Result<bool> {
    manage::cancel(call.int8(0))
}
pg_function!(
    pg_background_queue_cancel,
    pg_finfo_pg_background_queue_cancel,
    cancel
);

fn retry(call: &Call) -> Result<bool> {
    manage::retry(call.int8(0))
}
pg_function!(
    pg_background_queue_retry,
    pg_finfo_pg_background_queue_retry,
    retry
);

fn origin(_call: &Call) -> Result<String> {
    Ok(store::origin().to_owned())
}
pg_function!(
    pg_background_queue_origin,
    pg_finfo_pg_background_queue_origin,
    origin
);

fn ensure_workers(_call: &Call) -> Result<()> {
    manage::ensure_workers()
}
pg_function!(
    pg_background_queue_ensure_workers,
    pg_finfo_pg_background_queue_ensure_workers,
    ensure_workers
);

fn active_workers(_call: &Call) -> Result<i32> {
    manage::active_workers()
}
pg_function!(
    pg_background_queue_active_workers_count,
    pg_finfo_pg_background_queue_active_workers_count,
    active_workers
);

fn workers(call: &Call) -> Result<()> {
    call.return_rows(&manage::workers()?)
}
pg_function!(
    pg_background_queue_worker_slots,
    pg_finfo_pg_background_queue_worker_slots,
    workers
);

fn calibrate_workers(_call: &Call) -> Result<i32> {
    manage::calibrate_workers()
}
pg_function!(
    pg_background_queue_calibrate_workers_count,
    pg_finfo_pg_background_queue_calibrate_workers_count,
    calibrate_workers
);
