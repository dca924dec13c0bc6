//! Settings of a network namespace, by /proc/sys/net.

use std::path::Path;

use super::LinkError;

/// Writes a sysctl (dots or slashes: "net.ipv4.ip_forward") of the calling
/// thread's network namespace; one that has the value already is not written.
///
/// # Errors
/// [`LinkError::Sysctl`].
pub fn set_sysctl(name: &str, value: &str) -> Result<(), LinkError> {
    // With slashes the name is taken as it is: a link's name may hold a dot.
    let relative = if name.contains('/') {
        name.to_owned()
    } else {
        name.replace('.', "/")
    };
    let path = Path::new("/proc/sys").join(relative);
    let failed = |source| LinkError::Sysctl {
        name: name.to_owned(),
        value: value.to_owned(),
        source,
    };
    if std::fs::read_to_string(&path).map_err(failed)?.trim() == value {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(failed)
}
