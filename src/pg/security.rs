//! Who we are, and being somebody else for a moment.

use super::error::Result;
use super::guard;
use crate::pg_sys::{self, Oid};

/// The role whose rights are in force (`current_user`).
pub fn current_role() -> Oid {
    // SAFETY: reads a variable; a role is set wherever SQL runs.
    unsafe { pg_sys::GetUserId() }
}

/// Whether the current role is a superuser.
///
/// # Errors
/// A failing catalog lookup.
pub fn is_superuser() -> Result<bool> {
    // SAFETY: no arguments.
    guard(|| unsafe { pg_sys::superuser() })
}

/// The current role is `role`, in a security-restricted way, until it is dropped (`SetUserIdAndSecContext`).
#[must_use = "dropping it changes back at once"]
pub struct AsRole {
    role: Oid,
    context: i32,
}

impl AsRole {
    /// Changes over.
    pub fn enter(role: Oid) -> Self {
        let (mut previous, mut context) = (0, 0);
        // SAFETY: live locals; neither call raises. LOCAL_USERID_CHANGE keeps SET ROLE and the like away.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&raw mut previous, &raw mut context);
            pg_sys::SetUserIdAndSecContext(
                role,
                context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32,
            );
        }
        Self {
            role: previous,
            context,
        }
    }
}

impl Drop for AsRole {
    fn drop(&mut self) {
        // SAFETY: the values that were in force.
        unsafe { pg_sys::SetUserIdAndSecContext(self.role, self.context) };
    }
}
