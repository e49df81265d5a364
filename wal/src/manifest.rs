//! What a data directory says about itself: `manifest.toml`.
//!
//! It is written once, when the directory is created, and holds what nothing
//! else can bring back: the seed that maps names to users and the salts that the
//! logs are sealed with. It is replaced atomically (new file, fsync, rename,
//! fsync of the directory) and carries a checksum, because a single flipped bit
//! in the seed would hide every user from its own inbox.
#![allow(clippy::disallowed_types)] // the disk half

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::file;
use crate::{FORMAT, FORMAT_OLDEST};

/// The manifest's file name.
pub const FILE_NAME: &str = "manifest.toml";
/// Where the next manifest is written before it replaces the present one.
pub(crate) const TEMPORARY_NAME: &str = "manifest.toml.tmp";

const PREAMBLE: &str = "# Written by iris-shard. Without this file the logs beside it cannot be read:\n\
    # do not edit it, and keep it in every backup.\n";

/// What a data directory says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Number of the on-disk format, [`FORMAT_OLDEST`] to [`FORMAT`].
    pub format: u32,
    /// How many shards it was written for.
    pub shards: u16,
    /// Seed of the hash that makes a user's key from the name.
    pub seed: [u64; 2],
    /// Each shard's log salt, by shard.
    pub salts: Vec<u64>,
    /// Log bytes in one segment file.
    pub segment_bytes: u64,
    /// How often the directory was rewritten for another number of shards: 0
    /// for as it was made. Says where the shards' directories are. Format 1
    /// knows only 0.
    pub generation: u64,
}

/// Why a manifest cannot be used.
#[derive(Debug)]
pub enum ManifestError {
    /// Another format than this version reads.
    OtherFormat(u32),
    /// Not the text of a manifest; why.
    Broken(String),
    /// Reading or writing failed.
    Io(io::Error),
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ManifestError::OtherFormat(n) => {
                write!(f, "its format is {n}, and {FORMAT_OLDEST} to {FORMAT} are known")
            }
            ManifestError::Broken(why) => f.write_str(why),
            ManifestError::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ManifestError {}

impl From<io::Error> for ManifestError {
    fn from(error: io::Error) -> ManifestError {
        ManifestError::Io(error)
    }
}

/// The file's fields. 64-bit secrets are hexadecimal text: TOML's integers are
/// signed.
#[derive(Serialize, Deserialize)]
struct Fields {
    format: u32,
    shards: u16,
    segment_bytes: u64,
    /// From format 2 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    seed: [String; 2],
    salts: Vec<String>,
    checksum: String,
}

impl Manifest {
    /// The file's text.
    pub fn encode(&self) -> String {
        let fields = Fields {
            format: self.format,
            shards: self.shards,
            segment_bytes: self.segment_bytes,
            generation: (self.format >= 2).then_some(self.generation),
            seed: self.seed.map(hex),
            salts: self.salts.iter().copied().map(hex).collect(),
            checksum: format!("{:08x}", self.checksum()),
        };
        let text = toml::to_string(&fields).expect("plain fields are TOML");
        format!("{PREAMBLE}{text}")
    }

    /// Reads the file's text.
    ///
    /// # Errors
    /// [`ManifestError`]; the format is looked at before anything else, because
    /// a newer one may have other fields.
    pub fn decode(text: &str) -> Result<Manifest, ManifestError> {
        let broken = |why: &str| ManifestError::Broken(why.into());
        let table: toml::Table =
            text.parse().map_err(|_| broken("it is not TOML, so it is damaged"))?;
        let format = table.get("format").and_then(toml::Value::as_integer);
        let format = format.ok_or_else(|| broken("it does not say which format it has"))?;
        let formats = i64::from(FORMAT_OLDEST)..=i64::from(FORMAT);
        if !formats.contains(&format) {
            // The checksum tells one that was written from one that rotted.
            for format in formats {
                let mut table = table.clone();
                table.insert("format".into(), format.into());
                if Manifest::of_table(table).is_ok() {
                    return Err(broken("its format is damaged: its checksum fits another"));
                }
            }
            return Err(ManifestError::OtherFormat(format.try_into().unwrap_or(u32::MAX)));
        }
        Manifest::of_table(table)
    }

    fn of_table(table: toml::Table) -> Result<Manifest, ManifestError> {
        let broken = |why: &str| ManifestError::Broken(why.into());
        let fields: Fields = table.try_into().map_err(|error: toml::de::Error| {
            ManifestError::Broken(format!("it is damaged: {}", error.message()))
        })?;
        if fields.generation.is_some() != (fields.format >= 2) {
            return Err(broken("a generation belongs to format 2 and to those after it"));
        }
        let manifest = fields.manifest().ok_or_else(|| broken("a seed or salt is damaged"))?;
        if fields.checksum != format!("{:08x}", manifest.checksum()) {
            return Err(broken("its checksum does not fit, so it was edited or damaged"));
        }
        let salts = manifest.salts.len();
        if salts == 0 || salts != usize::from(manifest.shards) {
            return Err(broken("it does not hold one salt for each shard"));
        }
        Ok(manifest)
    }

    /// Reads the manifest in this directory.
    ///
    /// # Errors
    /// [`ManifestError`]; `Io` with `NotFound` when there is none.
    pub fn load(dir: &Path) -> Result<Manifest, ManifestError> {
        Manifest::decode(&file::read_to_string(&dir.join(FILE_NAME))?)
    }

    /// Writes the manifest into this directory, replacing the one there is: a
    /// crash leaves the old one or the new one.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn store(&self, dir: &Path) -> io::Result<()> {
        let temporary = dir.join(TEMPORARY_NAME);
        // Readable by its owner only: the salts are secrets.
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(self.encode().as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, dir.join(FILE_NAME))?;
        File::open(dir)?.sync_all()
    }

    fn checksum(&self) -> u32 {
        let Manifest { format, shards, seed, salts, segment_bytes, generation } = self;
        let mut text = format!("{format} {shards} {segment_bytes} {seed:?} {salts:?}");
        if *format >= 2 {
            text += &format!(" {generation}");
        }
        crc32c::crc32c(text.as_bytes())
    }
}

impl Fields {
    fn manifest(&self) -> Option<Manifest> {
        let salts = self.salts.iter().map(|text| from_hex(text));
        Some(Manifest {
            format: self.format,
            shards: self.shards,
            seed: [from_hex(&self.seed[0])?, from_hex(&self.seed[1])?],
            salts: salts.collect::<Option<_>>()?,
            segment_bytes: self.segment_bytes,
            generation: self.generation.unwrap_or(0),
        })
    }
}

fn hex(value: u64) -> String {
    format!("{value:016x}")
}

fn from_hex(text: &str) -> Option<u64> {
    (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            format: FORMAT,
            shards: 2,
            seed: [1, u64::MAX],
            salts: vec![0x0123_4567_89ab_cdef, 7],
            segment_bytes: 64 << 20,
            generation: 3,
        }
    }

    #[test]
    fn golden_text() {
        let expected = "\
            # Written by iris-shard. Without this file the logs beside it cannot be read:\n\
            # do not edit it, and keep it in every backup.\n\
            format = 5\n\
            shards = 2\n\
            segment_bytes = 67108864\n\
            generation = 3\n\
            seed = [\"0000000000000001\", \"ffffffffffffffff\"]\n\
            salts = [\"0123456789abcdef\", \"0000000000000007\"]\n\
            checksum = \"7ce1a01b\"\n";
        assert_eq!(manifest().encode(), expected);
        assert_eq!(Manifest::decode(expected).unwrap(), manifest());
    }

    /// The texts of those in between.
    #[test]
    fn golden_text_of_format_4() {
        let written = "\
            # Written by iris-shard. Without this file the logs beside it cannot be read:\n\
            # do not edit it, and keep it in every backup.\n\
            format = 4\n\
            shards = 2\n\
            segment_bytes = 67108864\n\
            generation = 3\n\
            seed = [\"0000000000000001\", \"ffffffffffffffff\"]\n\
            salts = [\"0123456789abcdef\", \"0000000000000007\"]\n\
            checksum = \"f807025e\"\n";
        let manifest = Manifest { format: 4, ..manifest() };
        assert_eq!(Manifest::decode(written).unwrap(), manifest);
        assert_eq!(manifest.encode(), written);
    }

    #[test]
    fn golden_text_of_format_3() {
        let written = "\
            # Written by iris-shard. Without this file the logs beside it cannot be read:\n\
            # do not edit it, and keep it in every backup.\n\
            format = 3\n\
            shards = 2\n\
            segment_bytes = 67108864\n\
            generation = 3\n\
            seed = [\"0000000000000001\", \"ffffffffffffffff\"]\n\
            salts = [\"0123456789abcdef\", \"0000000000000007\"]\n\
            checksum = \"6882f696\"\n";
        let manifest = Manifest { format: 3, ..manifest() };
        assert_eq!(Manifest::decode(written).unwrap(), manifest);
        assert_eq!(manifest.encode(), written);
    }

    #[test]
    fn golden_text_of_format_2() {
        let written = "\
            # Written by iris-shard. Without this file the logs beside it cannot be read:\n\
            # do not edit it, and keep it in every backup.\n\
            format = 2\n\
            shards = 2\n\
            segment_bytes = 67108864\n\
            generation = 3\n\
            seed = [\"0000000000000001\", \"ffffffffffffffff\"]\n\
            salts = [\"0123456789abcdef\", \"0000000000000007\"]\n\
            checksum = \"ec6454d3\"\n";
        let manifest = Manifest { format: 2, ..manifest() };
        assert_eq!(Manifest::decode(written).unwrap(), manifest);
        assert_eq!(manifest.encode(), written);
    }

    /// The text that the first versions wrote.
    #[test]
    fn golden_text_of_format_1() {
        let written = "\
            # Written by iris-shard. Without this file the logs beside it cannot be read:\n\
            # do not edit it, and keep it in every backup.\n\
            format = 1\n\
            shards = 2\n\
            segment_bytes = 67108864\n\
            seed = [\"0000000000000001\", \"ffffffffffffffff\"]\n\
            salts = [\"0123456789abcdef\", \"0000000000000007\"]\n\
            checksum = \"59e494b2\"\n";
        let manifest = Manifest { format: 1, generation: 0, ..manifest() };
        assert_eq!(Manifest::decode(written).unwrap(), manifest);
        assert_eq!(manifest.encode(), written);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let check = |from: &str, to: &str, word: &str| {
            let text = manifest().encode().replace(from, to);
            assert_ne!(text, manifest().encode());
            let said = Manifest::decode(&text).unwrap_err().to_string();
            assert!(said.contains(word), "{said}");
        };
        check("format = 5", "format = 6", "its format is damaged");
        check("format = 5\n", "", "which format");
        check("format = 5", "format = -1", "its format is damaged");
        check("format = 5", "format = 1", "generation");
        check("generation = 3\n", "", "generation");
        check("generation = 3", "generation = 4", "checksum");
        check("shards = 2", "shards = 3", "checksum");
        check("shards = 2", "shards = 99999", "damaged");
        check("0123456789abcdef", "0123456789abcdee", "checksum");
        check("0123456789abcdef", "0123456789abcdeg", "salt");
        check("seed", "sed", "seed");
        check("=", "\0", "TOML");
    }

    #[test]
    fn rot_is_noticed() {
        let good = manifest().encode().into_bytes();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let Ok(text) = String::from_utf8(bad) else { continue };
            // In a comment or between words it changes nothing.
            if let Ok(found) = Manifest::decode(&text) {
                assert_eq!(found, manifest(), "bit {bit}");
            }
        }
    }

    #[test]
    fn replacing_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Manifest::load(dir.path()), Err(ManifestError::Io(_))));
        manifest().store(dir.path()).unwrap();
        let other = Manifest { seed: [3, 4], ..manifest() };
        other.store(dir.path()).unwrap();
        assert_eq!(Manifest::load(dir.path()).unwrap(), other);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left over");
    }

    #[test]
    fn half_a_text_is_none() {
        let text = manifest().encode();
        // All but the last line's end is needed.
        for len in 0..text.len() - 1 {
            assert!(Manifest::decode(&text[..len]).is_err(), "{len} bytes");
        }
        assert_eq!(Manifest::decode(text.trim_end()).unwrap(), manifest());
    }

    /// All but the format.
    const FIELDS: [&str; 6] =
        ["shards", "segment_bytes", "generation", "seed", "salts", "checksum"];
    /// TOML's integers end at 2^63.
    const INTEGER_MAX: u64 = i64::MAX as u64;

    fn any_manifest() -> impl Strategy<Value = Manifest> {
        (
            FORMAT_OLDEST..=FORMAT,
            any::<[u64; 2]>(),
            prop::collection::vec(any::<u64>(), 1..20),
            0..=INTEGER_MAX,
            0..=INTEGER_MAX,
        )
            .prop_map(|(format, seed, salts, segment_bytes, generation)| Manifest {
                format,
                shards: salts.len() as u16,
                seed,
                salts,
                segment_bytes,
                generation: if format >= 2 { generation } else { 0 },
            })
    }

    /// What is said of a text, without what was decoded.
    fn refusal(text: &str) -> String {
        Manifest::decode(text).map_or_else(|error| error.to_string(), |_| "none".into())
    }

    proptest! {
        #[test]
        fn round_trip(manifest in any_manifest()) {
            let text = manifest.encode();
            let found = Manifest::decode(&text).unwrap();
            prop_assert_eq!(found.encode(), text);
            prop_assert_eq!(found, manifest);
        }

        /// A field of another manifest is noticed, whichever it is.
        #[test]
        fn a_mixture_is_refused(
            one in any_manifest(),
            other in any_manifest(),
            field in prop::sample::select(FIELDS.to_vec()),
        ) {
            let (text, other) = (one.encode(), other.encode());
            let is_it = |line: &&str| line.starts_with(&format!("{field} = "));
            // Format 1 has no generation.
            let found = text.lines().find(is_it).zip(other.lines().find(is_it));
            if let Some((from, to)) = found.filter(|(from, to)| from != to) {
                let said = refusal(&text.replace(from, to));
                prop_assert!(said.contains("checksum does not fit"), "{}", said);
            }
        }

        #[test]
        fn any_other_format_is_named(
            manifest in any_manifest(),
            format in prop_oneof![0..FORMAT_OLDEST, FORMAT + 1..FORMAT + 4, FORMAT + 1..=u32::MAX],
        ) {
            let was = format!("format = {}\n", manifest.format);
            let text = manifest.encode().replace(&was, &format!("format = {format}\n"));
            let found = Manifest::decode(&Manifest { format, ..manifest }.encode());
            prop_assert!(
                matches!(found, Err(ManifestError::OtherFormat(told)) if told == format),
                "{:?}", found
            );
            // One that rotted is known by its checksum.
            let found = Manifest::decode(&text);
            prop_assert!(matches!(found, Err(ManifestError::Broken(_))), "{:?}", found);
            // Whatever else a newer one says.
            let found = Manifest::decode(&format!("format = {format}\nlayers = [2, 7]\n"));
            prop_assert!(matches!(found, Err(ManifestError::OtherFormat(_))), "{:?}", found);
        }

        #[test]
        fn each_shard_has_one_salt(manifest in any_manifest(), by in 1..=u16::MAX) {
            let shards = manifest.shards ^ by;
            let said = refusal(&Manifest { shards, ..manifest }.encode());
            prop_assert!(said.contains("one salt for each shard"), "{}", said);
        }

        #[test]
        fn garbage_is_refused(text: String, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Manifest::decode(&text).is_err());
            prop_assert!(Manifest::decode(&String::from_utf8_lossy(&bytes)).is_err());
            // Behind a format that is known.
            let lines = format!("format = {FORMAT}\n{text}");
            prop_assert!(Manifest::decode(&lines).is_err());
        }

        /// Cut, pieced together or written over: it is refused, or what has
        /// changed says nothing, as a comment does.
        #[test]
        fn no_edit_changes_what_it_says(
            manifest in any_manifest(),
            (from, to) in any::<(Index, Index)>(),
            with in prop_oneof!["", "[0-9a-f]{1,3}", "[ -~\n]{0,40}", any::<String>()],
        ) {
            let text = manifest.encode();
            let (from, to) = (from.index(text.len() + 1), to.index(text.len() + 1));
            let edited = [&text[..from.min(to)], &with, &text[from.max(to)..]].concat();
            let extended = [&text, &with[..]].concat();
            let twice = [&text[..from], &text[from.min(to)..]].concat();
            for edited in [edited, extended, twice] {
                if let Ok(found) = Manifest::decode(&edited) {
                    prop_assert_eq!(&found, &manifest, "{}", edited);
                }
            }
        }
    }
}
