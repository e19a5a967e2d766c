//! Random names and secrets, from the system.

use std::io;

/// 128 random bits as 32 hexadecimal digits: a name nobody else has, or half a secret.
///
/// # Errors
/// When the system gives no random numbers.
pub fn name() -> io::Result<String> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_two_names_are_alike() {
        let (one, other) = (super::name().unwrap(), super::name().unwrap());
        assert_eq!(one.len(), 32);
        assert_ne!(one, other);
    }
}
