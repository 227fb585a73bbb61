//! The decoder of protocol version 1 (no transaction ids in the messages, no streaming of open transactions).

use super::message::{CellKind, Message, OldTuple, RelationColumn, RelationMessage, Tuple};

/// The bytes are not a message of this protocol. Small and `Copy`: an error value per row would cost more than the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// Decodes one message as it stands in one XLogData frame.
pub(crate) fn decode(bytes: &[u8]) -> Result<Message<'_>, Malformed> {
    let mut reader = Reader::new(bytes);
    let message = match reader.u8()? {
        b'I' => {
            let relation = reader.u32()?;
            reader.expect(b'N', "INSERT without a new row")?;
            Message::Insert { relation, new: reader.tuple()? }
        }
        b'U' => {
            let relation = reader.u32()?;
            let (old, marker) = match reader.u8()? {
                b'K' => (Some(OldTuple::Key(reader.tuple()?)), reader.u8()?),
                b'O' => (Some(OldTuple::Full(reader.tuple()?)), reader.u8()?),
                marker => (None, marker),
            };
            if marker != b'N' {
                return Err(Malformed("UPDATE without a new row"));
            }
            Message::Update { relation, old, new: reader.tuple()? }
        }
        b'D' => {
            let relation = reader.u32()?;
            let old = match reader.u8()? {
                b'K' => OldTuple::Key(reader.tuple()?),
                b'O' => OldTuple::Full(reader.tuple()?),
                _ => return Err(Malformed("DELETE without an old row")),
            };
            Message::Delete { relation, old }
        }
        b'R' => Message::Relation(reader.relation()?),
        b'T' => {
            let count = reader.u32()? as usize;
            let _options = reader.u8()?;
            let (relations, rest) = reader
                .bytes(count.checked_mul(4).ok_or(Malformed("TRUNCATE of too many relations"))?)?
                .as_chunks::<4>();
            if !rest.is_empty() {
                return Err(Malformed("TRUNCATE with a cut relation"));
            }
            Message::Truncate { relations }
        }
        b'Y' | b'O' | b'M' => return Ok(Message::Ignored),
        _ => return Err(Malformed("unknown message type")),
    };
    if reader.remaining() != 0 {
        return Err(Malformed("bytes after the end of the message"));
    }
    Ok(message)
}

/// Takes big-endian fields off the front of a slice.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self.rest.split_first_chunk::<N>().ok_or(Malformed("message ends early"))?;
        self.rest = tail;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    fn expect(&mut self, byte: u8, otherwise: &'static str) -> Result<(), Malformed> {
        if self.u8()? == byte { Ok(()) } else { Err(Malformed(otherwise)) }
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.rest.split_at_checked(length).ok_or(Malformed("message ends early"))?;
        self.rest = tail;
        Ok(head)
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        let end = self.rest.iter().position(|&b| b == 0).ok_or(Malformed("name without an end"))?;
        let bytes = self.bytes(end)?;
        self.u8()?;
        std::str::from_utf8(bytes).map_err(|_| Malformed("name that is not UTF-8"))
    }

    /// One column of a row, and its bytes.
    pub(super) fn cell(&mut self) -> Result<(CellKind, &'a [u8]), Malformed> {
        let kind = match self.u8()? {
            b'n' => return Ok((CellKind::Null, &[])),
            b'u' => return Ok((CellKind::Unchanged, &[])),
            b't' => CellKind::Text,
            b'b' => CellKind::Binary,
            _ => return Err(Malformed("unknown kind of value")),
        };
        let length = self.u32()? as usize;
        Ok((kind, self.bytes(length)?))
    }

    fn tuple(&mut self) -> Result<Tuple<'a>, Malformed> {
        let columns = self.u16()?;
        let before = self.rest;
        for _ in 0..columns {
            self.cell()?;
        }
        let length = before.len() - self.rest.len();
        Ok(Tuple { columns, body: before.get(..length).unwrap_or_default() })
    }

    fn relation(&mut self) -> Result<RelationMessage<'a>, Malformed> {
        let relation = self.u32()?;
        let namespace = match self.text()? {
            "" => "pg_catalog",
            namespace => namespace,
        };
        let name = self.text()?;
        let replica_identity = self.u8()?;
        let count = self.u16()?;
        let mut columns = Vec::new();
        for _ in 0..count {
            columns.push(RelationColumn {
                key: self.u8()? & 1 != 0,
                name: self.text()?,
                type_oid: self.u32()?,
                type_modifier: self.u32()?.cast_signed(),
            });
        }
        Ok(RelationMessage { relation, namespace, name, replica_identity, columns })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use proptest::prelude::*;

    use super::super::message::Cell;
    use super::*;

    fn tuple(cells: &[Option<&[u8]>]) -> Vec<u8> {
        let mut bytes = (cells.len() as u16).to_be_bytes().to_vec();
        for cell in cells {
            match cell {
                None => bytes.push(b'n'),
                Some([b'?']) => bytes.push(b'u'),
                Some(value) => {
                    bytes.push(b'b');
                    bytes.extend((value.len() as u32).to_be_bytes());
                    bytes.extend(*value);
                }
            }
        }
        bytes
    }

    fn samples() -> Vec<Vec<u8>> {
        let row = tuple(&[Some(&[0, 0, 0, 7]), None, Some(b"?"), Some(b"text")]);
        let id = 4711u32.to_be_bytes();
        let message = |parts: &[&[u8]]| parts.concat();
        vec![
            message(&[b"I", &id, b"N", &row]),
            message(&[b"U", &id, b"N", &row]),
            message(&[b"U", &id, b"K", &row, b"N", &row]),
            message(&[b"U", &id, b"O", &row, b"N", &row]),
            message(&[b"D", &id, b"K", &row]),
            message(&[b"D", &id, b"O", &row]),
            message(&[b"T", &2u32.to_be_bytes(), b"\x03", &id, &id]),
            message(&[
                b"R",
                &id,
                b"public\0payments\0d",
                &2u16.to_be_bytes(),
                b"\x01id\0",
                &20u32.to_be_bytes(),
                &(-1i32).to_be_bytes(),
                b"\x00amount\0",
                &1700u32.to_be_bytes(),
                &1_179_654i32.to_be_bytes(),
            ]),
            b"Ysomething".to_vec(),
        ]
    }

    fn walk(bytes: &[u8]) {
        let mut cells: Vec<Cell> = Vec::new();
        let mut visit = |tuple: Tuple<'_>| {
            tuple.cells_into(&mut cells).unwrap();
            for cell in &cells {
                tuple.bytes(*cell);
            }
        };
        match decode(bytes) {
            Ok(Message::Insert { new, .. }) => visit(new),
            Ok(Message::Update { old, new, .. }) => {
                if let Some(OldTuple::Key(old) | OldTuple::Full(old)) = old {
                    visit(old);
                }
                visit(new);
            }
            Ok(Message::Delete { old: OldTuple::Key(old) | OldTuple::Full(old), .. }) => visit(old),
            _ => {}
        }
    }

    #[test]
    fn every_kind_of_message_decodes() {
        for bytes in samples() {
            assert!(decode(&bytes).is_ok(), "{bytes:?}");
        }
        let samples = samples();
        let Ok(Message::Relation(relation)) = decode(&samples[7]) else { panic!() };
        assert_eq!((relation.namespace, relation.name, relation.replica_identity), ("public", "payments", b'd'));
        let columns: Vec<_> = relation.columns.iter().map(|c| (c.name, c.type_oid, c.type_modifier, c.key)).collect();
        assert_eq!(columns, [("id", 20, -1, true), ("amount", 1700, 1_179_654, false)]);
        let bytes = &samples[2];
        let Ok(Message::Update { old: Some(OldTuple::Key(old)), new, .. }) = decode(bytes) else { panic!() };
        let mut cells = Vec::new();
        for row in [old, new] {
            row.cells_into(&mut cells).unwrap();
            let kinds: Vec<_> = cells.iter().map(|c| c.kind).collect();
            assert_eq!(kinds, [CellKind::Binary, CellKind::Null, CellKind::Unchanged, CellKind::Binary]);
            assert_eq!(row.bytes(cells[0]), [0, 0, 0, 7]);
            assert_eq!(row.bytes(cells[3]), b"text");
        }
    }

    #[test]
    fn a_cut_message_is_refused() {
        for bytes in samples().iter().filter(|bytes| bytes[0] != b'Y') {
            for end in 0..bytes.len() {
                assert!(decode(&bytes[..end]).is_err(), "{bytes:?} cut at {end}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(tag in prop::sample::select(b"IUDRTYOMBCx".to_vec()), mut bytes in any::<Vec<u8>>()) {
            bytes.insert(0, tag);
            walk(&bytes);
        }

        #[test]
        fn damaged_messages_decode_or_are_refused(
            sample in 0usize..9, flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = samples().swap_remove(sample);
            for (at, with) in flips {
                let at = at.index(bytes.len());
                bytes[at] ^= with;
            }
            walk(&bytes);
            let end = cut.index(bytes.len());
            walk(&bytes[..end]);
        }
    }
}
