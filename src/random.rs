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

/// So many letters of five random bits each; none looks like another (Crockford's base 32), and all are small.
///
/// # Errors
/// When the system gives no random numbers.
pub fn letters(count: usize) -> io::Result<String> {
    const LETTERS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut bytes = vec![0; count];
    aws_lc_rs::rand::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes
        .iter()
        .map(|byte| char::from(LETTERS[usize::from(byte % 32)]))
        .collect())
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
