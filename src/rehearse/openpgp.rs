//! A throw-away `OpenPGP` key and the three things that an apt repository needs of it: the public key, a detached
//! signature (`Release.gpg`) and a cleartext signature (`InRelease`).
//!
//! Version 4, Ed25519, SHA-512: what gpgv of every supported release and sqv accept. Only writing, only one kind
//! of key, and the secret half never leaves this process; for that a full `OpenPGP` library would be out of proportion.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA512, digest};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};

use crate::error::{Code, Error, Result};

/// RFC 4880 with the `EdDSA` extension that `GnuPG` and Sequoia share ("`EdDSALegacy`" in RFC 9580).
const EDDSA: u8 = 22;
const HASH_SHA512: u8 = 10;
/// 1.3.6.1.4.1.11591.15.1, Ed25519, as it stands in a key packet.
const ED25519_OID: [u8; 9] = [0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01];

const SIGNATURE_BINARY: u8 = 0x00;
const SIGNATURE_TEXT: u8 = 0x01;
const CERTIFICATION: u8 = 0x13;

const TAG_SIGNATURE: u8 = 2;
const TAG_PUBLIC_KEY: u8 = 6;
const TAG_USER_ID: u8 = 13;

/// Key flags "may certify" and "may sign".
const CERTIFY_AND_SIGN: u8 = 0x03;

/// A signing key.
pub(super) struct Signer {
    pair: Ed25519KeyPair,
    user_id: String,
    created: u32,
    /// Body of the public key packet; everything else is derived from it.
    public: Vec<u8>,
    fingerprint: Vec<u8>,
}

impl Signer {
    /// A new key that says it was made at `created` (seconds since 1970).
    pub(super) fn generate(user_id: &str, created: u32) -> Result<Self> {
        let failed = || Error::new(Code::RehearsalFailed, "cannot make a signing key");
        let seed = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| failed())?;
        let pair = Ed25519KeyPair::from_pkcs8(seed.as_ref()).map_err(|_| failed())?;
        let mut public = vec![4];
        public.extend(created.to_be_bytes());
        public.push(EDDSA);
        public.push(u8::try_from(ED25519_OID.len()).unwrap_or_default());
        public.extend(ED25519_OID);
        // The point is prefixed with 0x40 ("native encoding"), so the number always has 263 bits.
        public.extend(263u16.to_be_bytes());
        public.push(0x40);
        public.extend(pair.public_key().as_ref());
        let fingerprint = digest(&SHA1_FOR_LEGACY_USE_ONLY, &framed_key(&public)).as_ref().to_vec();
        Ok(Self { pair, user_id: user_id.into(), created, public, fingerprint })
    }

    /// 40 hexadecimal digits, upper case.
    pub(super) fn fingerprint(&self) -> String {
        self.fingerprint.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02X}"); // writing to a String cannot fail
            text
        })
    }

    /// The public key with its self-signature, ASCII-armoured.
    pub(super) fn public_key(&self) -> String {
        let mut packets = packet(TAG_PUBLIC_KEY, &self.public);
        packets.extend(packet(TAG_USER_ID, self.user_id.as_bytes()));
        let mut data = framed_key(&self.public);
        data.push(0xb4);
        data.extend(length32(self.user_id.len()));
        data.extend(self.user_id.as_bytes());
        packets.extend(self.signature(CERTIFICATION, &data, &[&[27, CERTIFY_AND_SIGN], &[21, HASH_SHA512]]));
        armour("PUBLIC KEY BLOCK", &packets)
    }

    /// A detached signature of `data`, ASCII-armoured.
    pub(super) fn detached(&self, data: &[u8]) -> String {
        armour("SIGNATURE", &self.signature(SIGNATURE_BINARY, data, &[]))
    }

    /// `text` with a cleartext signature around it.
    pub(super) fn cleartext(&self, text: &str) -> String {
        // What is signed ends its lines with CRLF and has no blanks at their ends and no last line break.
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        let signature = self.signature(SIGNATURE_TEXT, lines.join("\r\n").as_bytes(), &[]);
        let mut out = String::from("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n");
        for line in lines {
            let escape = if line.starts_with('-') { "- " } else { "" };
            let _ = writeln!(out, "{escape}{line}");
        }
        out + &armour("SIGNATURE", &signature)
    }

    /// A signature packet of `kind` over `data`, with further hashed subpackets (type, content).
    fn signature(&self, kind: u8, data: &[u8], more: &[&[u8]]) -> Vec<u8> {
        let mut hashed = subpacket(&[&[2], &self.created.to_be_bytes()[..]].concat());
        hashed.extend(subpacket(&[&[33, 4], &self.fingerprint[..]].concat()));
        for content in more {
            hashed.extend(subpacket(content));
        }
        let mut body = vec![4, kind, EDDSA, HASH_SHA512];
        body.extend(length16(hashed.len()));
        body.extend(&hashed);
        let mut signed = data.to_vec();
        signed.extend(&body);
        signed.extend([4, 0xff]);
        signed.extend(length32(body.len()));
        let hash = digest(&SHA512, &signed);
        // The issuer's short id, unhashed, for verifiers that look there only.
        let issuer = subpacket(&[&[16], &self.fingerprint[12..]].concat());
        body.extend(length16(issuer.len()));
        body.extend(issuer);
        body.extend(&hash.as_ref()[..2]);
        let signature = self.pair.sign(hash.as_ref());
        let (r, s) = signature.as_ref().split_at(32);
        body.extend(number(r));
        body.extend(number(s));
        packet(TAG_SIGNATURE, &body)
    }
}

/// The key as it goes into hashes.
fn framed_key(public: &[u8]) -> Vec<u8> {
    let mut framed = vec![0x99];
    framed.extend(length16(public.len()));
    framed.extend(public);
    framed
}

/// A packet with an old-format header, as gpg writes it. Bodies here are far below 64 KiB.
fn packet(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = match u8::try_from(body.len()) {
        Ok(short) => vec![0x80 | tag << 2, short],
        Err(_) => [&[0x81 | tag << 2], &length16(body.len())[..]].concat(),
    };
    out.extend(body);
    out
}

/// A subpacket; `content` starts with its type and is shorter than 192 bytes.
fn subpacket(content: &[u8]) -> Vec<u8> {
    let mut out = vec![u8::try_from(content.len()).unwrap_or_default()];
    out.extend(content);
    out
}

/// A multiprecision integer: count of bits, then the bytes without leading zeros.
fn number(bytes: &[u8]) -> Vec<u8> {
    let significant = &bytes[bytes.iter().take_while(|b| **b == 0).count()..];
    let top = significant.first().map_or(0, |b| 8 - b.leading_zeros() as usize);
    let bits = significant.len().saturating_sub(1) * 8 + top;
    [&length16(bits)[..], significant].concat()
}

fn length16(n: usize) -> [u8; 2] {
    u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes()
}

fn length32(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes()
}

fn armour(kind: &str, bytes: &[u8]) -> String {
    let mut out = format!("-----BEGIN PGP {kind}-----\n\n");
    for line in bytes.chunks(48) {
        out.push_str(&STANDARD.encode(line));
        out.push('\n');
    }
    let crc = crc24(bytes).to_be_bytes();
    let _ = write!(out, "={}\n-----END PGP {kind}-----\n", STANDARD.encode(&crc[1..]));
    out
}

/// The checksum of ASCII armour (RFC 4880, section 6.1).
fn crc24(bytes: &[u8]) -> u32 {
    let mut crc = 0x00b7_04ce_u32;
    for byte in bytes {
        crc ^= u32::from(*byte) << 16;
        for _ in 0..8 {
            crc <<= 1;
            if crc & 0x0100_0000 != 0 {
                crc ^= 0x0186_4cfb;
            }
        }
    }
    crc & 0x00ff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        assert_eq!(crc24(b""), 0x00b7_04ce);
        assert_eq!(crc24(b"123456789"), 0x0021_cf02);
    }

    #[test]
    fn numbers_have_no_leading_zeros() {
        assert_eq!(number(&[0, 0, 1, 0xff]), [0, 9, 1, 0xff]);
    }

    #[test]
    fn fingerprints_have_forty_digits_and_keys_differ() {
        let a = Signer::generate("a", 1).unwrap();
        let b = Signer::generate("a", 1).unwrap();
        assert_eq!(a.fingerprint().len(), 40);
        assert_ne!(a.fingerprint(), b.fingerprint());
    }

    /// gpgv is a part of every supported release's apt, so that it is there to judge these signatures.
    #[test]
    fn gpgv_accepts_both_kinds_of_signature_and_refuses_other_text() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let signer = Signer::generate("a test", 1_700_000_000).unwrap();
        let text = "Origin: NVIDIA\nLabel: NVIDIA CUDA\n- dash\nSHA256:\n 00 1 Packages\n";
        std::fs::write(at("key.asc"), signer.public_key()).unwrap();
        std::fs::write(at("Release"), text).unwrap();
        std::fs::write(at("Tampered"), text.replace("NVIDIA CUDA", "NVIDIA")).unwrap();
        std::fs::write(at("Release.gpg"), signer.detached(text.as_bytes())).unwrap();
        std::fs::write(at("InRelease"), signer.cleartext(text)).unwrap();
        std::fs::write(at("key.gpg"), unarmoured(&signer.public_key())).unwrap();
        let gpgv = |args: &[&str]| {
            let out = std::process::Command::new("gpgv")
                .arg("--keyring")
                .arg(at("key.gpg"))
                .args(args.iter().map(|a| at(a)))
                .output();
            match out {
                Ok(out) => (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned()),
                Err(e) => panic!("gpgv is needed for this test: {e}"),
            }
        };
        let (good, said) = gpgv(&["InRelease"]);
        assert!(good, "{said}");
        let (good, said) = gpgv(&["Release.gpg", "Release"]);
        assert!(good, "{said}");
        assert!(said.contains(&signer.fingerprint()), "{said}");
        let (good, said) = gpgv(&["Release.gpg", "Tampered"]);
        assert!(!good && said.contains("BAD signature"), "{said}");
    }

    /// The inverse of [`armour`], for the test above.
    fn unarmoured(text: &str) -> Vec<u8> {
        let body: String = text.lines().skip(2).take_while(|l| !l.starts_with('=')).collect();
        STANDARD.decode(body).unwrap()
    }
}
