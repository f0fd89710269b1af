//! Settings.

use std::cell::UnsafeCell;
use std::ffi::CStr;

use super::error::{Result, c_string};
use super::guard;
use crate::pg_sys;

/// An integer setting that the configuration file and SIGHUP change.
pub struct IntSetting(UnsafeCell<i32>);

// SAFETY: a server process runs our code on one thread only.
unsafe impl Sync for IntSetting {}

/// Milliseconds, as the unit of a setting.
pub const UNIT_MS: u32 = pg_sys::GUC_UNIT_MS;

/// Seconds, as the unit of a setting.
pub const UNIT_S: u32 = pg_sys::GUC_UNIT_S;

/// What an [`IntSetting`] may be.
pub struct IntDefinition {
    /// Its full name, with the extension's prefix.
    pub name: &'static CStr,
    /// One line for pg_settings.
    pub short: &'static CStr,
    /// More lines for pg_settings.
    pub long: &'static CStr,
    /// Its default.
    pub default: i32,
    /// Its least value.
    pub min: i32,
    /// Its greatest value.
    pub max: i32,
    /// `GUC_UNIT_*`, or 0.
    pub unit: u32,
}

impl Default for IntSetting {
    fn default() -> Self {
        Self::new()
    }
}

impl IntSetting {
    /// The variable behind a setting, before it is defined.
    pub const fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    /// The value in force.
    pub fn get(&self) -> i32 {
        // SAFETY: written only by the server, in this thread, not while we read.
        unsafe { *self.0.get() }
    }

    /// Makes it known to the server, with SIGHUP context (`DefineCustomIntVariable`, utils/guc.h). From `_PG_init`.
    ///
    /// # Errors
    /// The name is taken.
    pub fn define(&'static self, definition: IntDefinition) -> Result<()> {
        let IntDefinition {
            name,
            short,
            long,
            default,
            min,
            max,
            unit,
        } = definition;
        let variable = self.0.get();
        // SAFETY: all strings and the variable are statics.
        guard(|| unsafe {
            pg_sys::DefineCustomIntVariable(
                name.as_ptr(),
                short.as_ptr(),
                long.as_ptr(),
                variable,
                default,
                min,
                max,
                pg_sys::PGC_SIGHUP,
                unit as i32,
                None,
                None,
                None,
            )
        })
    }
}

/// The names that an [`EnumSetting`] may have: as the server wants them, with an end mark.
#[repr(C)]
pub struct Choices<const N: usize> {
    entries: [pg_sys::config_enum_entry; N],
    end: pg_sys::config_enum_entry,
}

// SAFETY: constants, and a server process runs our code on one thread only.
unsafe impl<const N: usize> Sync for Choices<N> {}

impl<const N: usize> Choices<N> {
    /// The value of each is its place in this list.
    pub const fn new(names: [&'static CStr; N]) -> Self {
        const END: pg_sys::config_enum_entry = pg_sys::config_enum_entry {
            name: std::ptr::null(),
            val: 0,
            hidden: false,
        };
        let mut entries = [END; N];
        let mut i = 0;
        while i < N {
            entries[i].name = names[i].as_ptr();
            entries[i].val = i as i32;
            i += 1;
        }
        Self { entries, end: END }
    }
}

/// A setting that is one of some names, which the configuration file and SIGHUP change.
pub struct EnumSetting(IntSetting);

impl EnumSetting {
    /// The variable behind a setting, before it is defined.
    #[expect(clippy::new_without_default, reason = "only ever a static")]
    pub const fn new() -> Self {
        Self(IntSetting::new())
    }

    /// The place of the name in force among the choices.
    pub fn get(&self) -> i32 {
        self.0.get()
    }

    /// Makes it known to the server, the first of its choices as the default, with SIGHUP context (`DefineCustomEnumVariable`,
    /// utils/guc.h). From `_PG_init`.
    ///
    /// # Errors
    /// The name is taken.
    pub fn define<const N: usize>(
        &'static self,
        name: &'static CStr,
        short: &'static CStr,
        long: &'static CStr,
        choices: &'static Choices<N>,
    ) -> Result<()> {
        let variable = self.0.0.get();
        // SAFETY: all are statics; the server reads the entries up to the end mark behind them, and writes nothing.
        guard(|| unsafe {
            pg_sys::DefineCustomEnumVariable(
                name.as_ptr(),
                short.as_ptr(),
                long.as_ptr(),
                variable,
                0,
                std::ptr::from_ref(choices).cast(),
                pg_sys::PGC_SIGHUP,
                0,
                None,
                None,
                None,
            )
        })
    }
}

/// Makes settings of this prefix that nobody defined an error. From `_PG_init`, after the definitions.
///
/// # Errors
/// Out of memory.
pub fn reserve_prefix(prefix: &'static CStr) -> Result<()> {
    // SAFETY: a terminated static.
    #[cfg(any(pg13, pg14))]
    return guard(|| unsafe { pg_sys::EmitWarningsOnPlaceholders(prefix.as_ptr()) });
    // SAFETY: a terminated static.
    #[cfg(not(any(pg13, pg14)))]
    guard(|| unsafe { pg_sys::MarkGUCPrefixReserved(prefix.as_ptr()) })
}

/// Sets a setting for the session, as the session's user could (`SET`).
///
/// # Errors
/// The value is refused.
pub fn set_for_session(name: &'static CStr, value: &[u8]) -> Result<()> {
    let value = c_string(value);
    let text = value.as_ptr();
    // SAFETY: terminated strings that outlive the call.
    guard(|| unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            text,
            pg_sys::PGC_USERSET,
            pg_sys::PGC_S_SESSION,
        )
    })
}

/// Sets what a setting is by default in this session: its value now, and again after a RESET. A value that the session was given by `SET`
/// stays in force until then.
///
/// # Errors
/// The value is refused.
pub fn set_default(name: &'static CStr, value: &[u8]) -> Result<()> {
    let value = c_string(value);
    let text = value.as_ptr();
    // SAFETY: terminated strings that outlive the call.
    guard(|| unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            text,
            pg_sys::PGC_USERSET,
            pg_sys::PGC_S_OVERRIDE,
        )
    })
}

/// Reads the configuration file again (`ProcessConfigFile`): for a main loop, never for a signal handler.
///
/// # Errors
/// Out of memory; a broken file is only logged.
pub fn reload() -> Result<()> {
    // SAFETY: no pointers.
    guard(|| unsafe { pg_sys::ProcessConfigFile(pg_sys::PGC_SIGHUP) })
}

/// The `search_path` in force, unexpanded.
pub fn search_path() -> Vec<u8> {
    // SAFETY: a string setting is null or a terminated string; copied at once.
    unsafe {
        let path = pg_sys::namespace_search_path;
        if path.is_null() {
            Vec::new()
        } else {
            CStr::from_ptr(path).to_bytes().to_vec()
        }
    }
}

/// A text setting whose values are checked by `C`.
pub struct TextSetting<C> {
    value: UnsafeCell<*mut std::ffi::c_char>,
    check: std::marker::PhantomData<C>,
}

// SAFETY: a server process runs our code on one thread only.
unsafe impl<C> Sync for TextSetting<C> {}

/// What a [`TextSetting`] asks of its values.
pub trait Check {
    /// Whether the value will do. Called in every process, with or without a database.
    ///
    /// # Errors
    /// The DETAIL of the error: full sentences.
    fn check(value: &[u8]) -> std::result::Result<(), String>;

    /// Another value is in force from now on.
    fn assigned();
}

impl<C: Check> TextSetting<C> {
    /// The variable behind a setting, before it is defined.
    #[expect(clippy::new_without_default, reason = "only ever a static")]
    pub const fn new() -> Self {
        Self {
            value: UnsafeCell::new(std::ptr::null_mut()),
            check: std::marker::PhantomData,
        }
    }

    /// The value in force.
    pub fn get(&self) -> Vec<u8> {
        // SAFETY: a string setting is null or a terminated string; copied at once.
        unsafe {
            let value = *self.value.get();
            if value.is_null() {
                Vec::new()
            } else {
                CStr::from_ptr(value).to_bytes().to_vec()
            }
        }
    }

    /// Makes it known to the server, empty by default, with SIGHUP context (`DefineCustomStringVariable`,
    /// utils/guc.h). From `_PG_init`.
    ///
    /// # Errors
    /// The name is taken.
    pub fn define(
        &'static self,
        name: &'static CStr,
        short: &'static CStr,
        long: &'static CStr,
    ) -> Result<()> {
        extern "C-unwind" fn check<C: Check>(
            value: *mut *mut std::ffi::c_char,
            _extra: *mut *mut std::ffi::c_void,
            _source: pg_sys::GucSource,
        ) -> bool {
            super::boundary(|| {
                // SAFETY: the server passes the address of a terminated string, or of null.
                let text = unsafe {
                    if (*value).is_null() {
                        return Ok(true);
                    }
                    CStr::from_ptr(*value)
                };
                let Err(detail) = C::check(text.to_bytes()) else {
                    return Ok(true);
                };
                let detail = c_string(detail);
                let detail = detail.as_ptr();
                // SAFETY: a terminated string, copied by the callee.
                guard(|| unsafe { pg_sys::pgbq_refuse_value(detail) })?;
                Ok(false)
            })
        }
        extern "C-unwind" fn assign<C: Check>(
            _value: *const std::ffi::c_char,
            _extra: *mut std::ffi::c_void,
        ) {
            C::assigned();
        }
        let variable = self.value.get();
        // SAFETY: all strings and the variable are statics, the hooks have the right types.
        guard(|| unsafe {
            pg_sys::DefineCustomStringVariable(
                name.as_ptr(),
                short.as_ptr(),
                long.as_ptr(),
                variable,
                c"".as_ptr(),
                pg_sys::PGC_SIGHUP,
                0,
                Some(check::<C>),
                Some(assign::<C>),
                None,
            )
        })
    }
}
