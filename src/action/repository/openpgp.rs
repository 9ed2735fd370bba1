//! As much of `OpenPGP` as a keyring file needs: ASCII armour, packet boundaries, the fingerprint of a v4 primary
//! key. Signatures are apt's to verify; here it is only established which certificates a file holds.

use base64::Engine as _;

/// One certificate (a transferable public key): a primary key with all that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Certificate {
    /// Fingerprint of the primary key: 40 hexadecimal digits, upper case.
    pub(crate) fingerprint: String,
    /// Its packets, binary.
    pub(crate) bytes: Vec<u8>,
}

const BEGIN: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
const END: &str = "-----END PGP PUBLIC KEY BLOCK-----";

const SIGNATURE: u8 = 2;
const PUBLIC_KEY: u8 = 6;
const TRUST: u8 = 12;
const USER_ID: u8 = 13;
const PUBLIC_SUBKEY: u8 = 14;
const USER_ATTRIBUTE: u8 = 17;

/// The certificates of a keyring file, armoured or binary.
pub(crate) fn certificates(file: &[u8]) -> Result<Vec<Certificate>, String> {
    match std::str::from_utf8(file) {
        Ok(text) if text.contains(BEGIN) => split(&dearmour(text)?),
        _ => split(file),
    }
}

/// Decodes every block of public keys in `text` and joins them; other text around the blocks is ignored.
pub(crate) fn dearmour(text: &str) -> Result<Vec<u8>, String> {
    let mut binary = Vec::new();
    let mut lines = text.lines().map(str::trim_end);
    let mut blocks = 0;
    while lines.any(|l| l == BEGIN) {
        blocks += 1;
        let body: Vec<&str> = lines.by_ref().take_while(|l| *l != END).collect();
        binary.extend(decode_block(&body)?);
    }
    if blocks == 0 { Err("there is no block of public keys".into()) } else { Ok(binary) }
}

/// The lines between BEGIN and END: headers up to an empty line, base64, and `=` with the CRC24.
fn decode_block(lines: &[&str]) -> Result<Vec<u8>, String> {
    let start = lines.iter().position(|l| l.is_empty()).ok_or("the armour has no empty line")? + 1;
    let mut data = String::new();
    let mut checksum = None;
    for line in &lines[start..] {
        match line.strip_prefix('=') {
            Some(sum) => checksum = Some(sum),
            None if checksum.is_some() && !line.is_empty() => return Err("data follow the checksum".into()),
            None => data.push_str(line),
        }
    }
    let engine = base64::engine::general_purpose::STANDARD;
    let bytes = engine.decode(data).map_err(|e| format!("the armour is not base64: {e}"))?;
    if let Some(sum) = checksum {
        let wanted = engine.decode(sum).map_err(|e| format!("the checksum is not base64: {e}"))?;
        if wanted != crc24(&bytes).to_be_bytes()[1..] {
            return Err("the armour's checksum does not fit".into());
        }
    }
    Ok(bytes)
}

/// RFC 9580, section 6.1.1.
fn crc24(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x00B7_04CE, |crc, byte| {
        (0..8).fold(crc ^ (u32::from(*byte) << 16), |crc, _| {
            let shifted = crc << 1;
            if shifted & 0x0100_0000 == 0 { shifted } else { shifted ^ 0x0186_4CFB }
        })
    })
}

/// Cuts binary packets into certificates. Anything that has no place in a keyring is an error.
fn split(bytes: &[u8]) -> Result<Vec<Certificate>, String> {
    let mut found: Vec<Certificate> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let packet = packet(&bytes[at..])?;
        let whole = &bytes[at..at + packet.end];
        match packet.tag {
            PUBLIC_KEY => found.push(Certificate {
                fingerprint: fingerprint(&whole[packet.start..])?,
                bytes: whole.to_vec(),
            }),
            SIGNATURE | TRUST | USER_ID | PUBLIC_SUBKEY | USER_ATTRIBUTE => match found.last_mut() {
                Some(certificate) => certificate.bytes.extend_from_slice(whole),
                None => return Err("it does not begin with a public key".into()),
            },
            other => {
                return Err(format!("it holds a packet of type {other}, which is no part of a public key"));
            }
        }
        at += packet.end;
    }
    if found.is_empty() { Err("it is empty".into()) } else { Ok(found) }
}

struct Packet {
    tag: u8,
    /// Where its body begins.
    start: usize,
    /// Where the next packet begins.
    end: usize,
}

/// The packet at the beginning of `bytes` (RFC 9580, section 4.2). Partial and indeterminate lengths, which
/// only data packets may have, are refused.
fn packet(bytes: &[u8]) -> Result<Packet, String> {
    let short = || "it ends in the middle of a packet".to_owned();
    let byte = |i: usize| bytes.get(i).copied().map(usize::from).ok_or_else(short);
    let first = byte(0)?;
    if first & 0x80 == 0 {
        return Err("it is no OpenPGP file".into());
    }
    let big_endian = |from: usize, count: usize| {
        (from..from + count).try_fold(0_usize, |n, i| Ok::<_, String>(n << 8 | byte(i)?))
    };
    let (tag, start, length) = if first & 0x40 == 0 {
        let count = match first & 3 {
            3 => return Err("a packet has no length".into()),
            n => 1 << n,
        };
        (first >> 2 & 0x0f, 1 + count, big_endian(1, count)?)
    } else {
        let (start, length) = match byte(1)? {
            n @ 0..192 => (2, n),
            n @ 192..224 => (3, ((n - 192) << 8) + byte(2)? + 192),
            255 => (6, big_endian(2, 4)?),
            _ => return Err("a packet has a partial length".into()),
        };
        (first & 0x3f, start, length)
    };
    let end = start + length;
    if end > bytes.len() {
        return Err(short());
    }
    // Six bits at most, by the masks above.
    Ok(Packet { tag: u8::try_from(tag).unwrap_or(u8::MAX), start, end })
}

/// SHA-1 over `0x99`, the length and the body of the packet: what a v4 fingerprint is defined as.
fn fingerprint(body: &[u8]) -> Result<String, String> {
    if body.first() != Some(&4) {
        return Err(format!("a key has version {}, only 4 is supported", body.first().unwrap_or(&0)));
    }
    let length = u16::try_from(body.len()).map_err(|_| "a key is too long".to_owned())?;
    let mut context = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(&[0x99]);
    context.update(&length.to_be_bytes());
    context.update(body);
    Ok(context.finish().as_ref().iter().fold(String::new(), |hex, b| format!("{hex}{b:02X}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A throw-away ed25519 key, made with gpg for this test.
    const KEY: &str = include_str!("../../../tests/fixtures/keys/throw-away.asc");
    const FINGERPRINT: &str = include_str!("../../../tests/fixtures/keys/throw-away.fingerprint");

    #[test]
    fn the_fingerprint_is_gpgs() {
        let found = certificates(KEY.as_bytes()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].fingerprint, FINGERPRINT.trim());
        assert_eq!(certificates(&found[0].bytes).unwrap(), found);
    }

    #[test]
    fn two_blocks_are_two_certificates() {
        assert_eq!(certificates(format!("{KEY}\n{KEY}").as_bytes()).unwrap().len(), 2);
    }

    #[test]
    fn damage_is_an_error() {
        let error = |text: &str| certificates(text.as_bytes()).unwrap_err();
        let line = KEY.lines().find(|l| l.starts_with('m')).unwrap();
        let flipped = line.replacen(&line[20..21], if &line[20..21] == "A" { "B" } else { "A" }, 1);
        assert_eq!(error(&KEY.replace(line, &flipped)), "the armour's checksum does not fit");
        assert!(error("<html>Sign in</html>").contains("no OpenPGP file"));
        let binary = dearmour(KEY).unwrap();
        assert!(certificates(&binary[..binary.len() - 1]).unwrap_err().contains("in the middle"));
        assert!(certificates(&[]).unwrap_err().contains("empty"));
    }
}
