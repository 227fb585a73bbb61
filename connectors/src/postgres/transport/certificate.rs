//! The fingerprint of a server's certificate that SCRAM binds a password exchange to (`tls-server-end-point`).
//!
//! The surprise: which hash it is stands in the certificate, as the one its own signature uses (MD5 and SHA-1 are
//! replaced by SHA-256). So a little of its encoding is walked here; nothing else of it is looked at.

use ring::digest::{Algorithm, SHA256, SHA384, SHA512, digest};

const SEQUENCE: u8 = 0x30;
const OID: u8 = 0x06;
const HASH_PARAMETER: u8 = 0xA0;

/// 1.2.840.113549.1.1, 1.2.840.10045.4 and 2.16.840.1.101.3.4.2: signatures with RSA, with ECDSA, and hashes.
const RSA: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01];
const ECDSA: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04];
const HASH: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02];

/// `None` where the certificate's signature names no hash that is known: then nothing can be bound to it.
pub(super) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    Some(digest(hash_of(certificate)?, certificate).as_ref().to_vec())
}

fn hash_of(certificate: &[u8]) -> Option<&'static Algorithm> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (_, after_body) = element(certificate, SEQUENCE)?;
    let (signature, _) = element(after_body, SEQUENCE)?;
    let (algorithm, parameters) = element(signature, OID)?;
    if let Some(kind) = algorithm.strip_prefix(RSA) {
        return match kind {
            [4 | 5 | 11] => Some(&SHA256),
            [12] => Some(&SHA384),
            [13] => Some(&SHA512),
            [10] => hash_of_pss(parameters),
            _ => None,
        };
    }
    match algorithm.strip_prefix(ECDSA)? {
        [1] | [3, 2] => Some(&SHA256),
        [3, 3] => Some(&SHA384),
        [3, 4] => Some(&SHA512),
        _ => None,
    }
}

fn hash_of_pss(parameters: &[u8]) -> Option<&'static Algorithm> {
    let (parameters, _) = element(parameters, SEQUENCE)?;
    let Some((hash, _)) = element(parameters, HASH_PARAMETER) else { return Some(&SHA256) };
    let (hash, _) = element(element(hash, SEQUENCE)?.0, OID)?;
    match hash.strip_prefix(HASH)? {
        [1] => Some(&SHA256),
        [2] => Some(&SHA384),
        [3] => Some(&SHA512),
        _ => None,
    }
}

/// The content of the element in front, which must be of this kind, and what follows it.
fn element(bytes: &[u8], kind: u8) -> Option<(&[u8], &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7F => (usize::from(*first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x0F))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    if *tag == kind { rest.split_at_checked(length) } else { None }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    #[test]
    fn the_hash_is_the_one_of_the_signature() {
        let certificate = |algorithm| {
            let key = KeyPair::generate_for(algorithm).unwrap();
            CertificateParams::new(vec!["h".to_owned()]).unwrap().self_signed(&key).unwrap().der().to_vec()
        };
        let small = certificate(&PKCS_ECDSA_P256_SHA256);
        assert_eq!(end_point(&small).unwrap(), digest(&SHA256, &small).as_ref());
        let large = certificate(&PKCS_ECDSA_P384_SHA384);
        assert_eq!(end_point(&large).unwrap(), digest(&SHA384, &large).as_ref());
        assert_eq!(end_point(&certificate(&PKCS_ED25519)), None);
    }

    #[test]
    fn rsa_signatures_with_and_without_parameters() {
        // Only the outline: an empty body, then the algorithm.
        let certificate = |algorithm: &[u8]| {
            let signature = [&[SEQUENCE, algorithm.len() as u8], algorithm].concat();
            [&[SEQUENCE, signature.len() as u8 + 2, SEQUENCE, 0], signature.as_slice()].concat()
        };
        let rsa = |kind: u8, parameters: &[u8]| [&[OID, 9], RSA, &[kind], parameters].concat();
        for (kind, hash) in [(5, &SHA256), (11, &SHA256), (12, &SHA384), (13, &SHA512)] {
            assert_eq!(hash_of(&certificate(&rsa(kind, &[5, 0]))), Some(hash));
        }
        assert_eq!(hash_of(&certificate(&rsa(14, &[5, 0]))), None);
        assert_eq!(hash_of(&certificate(&rsa(10, &[SEQUENCE, 0]))), Some(&SHA256));
        let sha512 = [&[SEQUENCE, 15, HASH_PARAMETER, 13, SEQUENCE, 11, OID, 9], HASH, &[3]].concat();
        assert_eq!(hash_of(&certificate(&rsa(10, &sha512))), Some(&SHA512));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_certificate_or_not(bytes in any::<Vec<u8>>()) {
            end_point(&bytes);
            end_point(&[&[SEQUENCE, bytes.len() as u8], bytes.as_slice()].concat());
        }
    }
}
