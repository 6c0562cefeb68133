use super::*;

/// Builds BTF by hand, as pahole would.
#[derive(Default)]
struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
}

impl Builder {
    fn string(&mut self, base: u32, text: &str) -> u32 {
        if self.strings.is_empty() && base == 0 {
            self.strings.push(0);
        }
        let at = base + u32::try_from(self.strings.len()).unwrap();
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        at
    }

    fn add(&mut self, name: u32, kind: u32, count: u32, word: u32, rest: &[u32]) {
        for value in [name, kind << 24 | count, word].iter().chain(rest) {
            self.types.extend_from_slice(&value.to_le_bytes());
        }
    }

    fn finish(&self) -> Vec<u8> {
        let mut blob = Vec::new();
        blob.extend_from_slice(&MAGIC.to_le_bytes());
        blob.extend_from_slice(&[1, 0]);
        let types = u32::try_from(self.types.len()).unwrap();
        let strings = u32::try_from(self.strings.len()).unwrap();
        for word in [24, 0, types, types, strings] {
            blob.extend_from_slice(&word.to_le_bytes());
        }
        blob.extend_from_slice(&self.types);
        blob.extend_from_slice(&self.strings);
        blob
    }
}

const WANTED: &[&str] = &["ids", "inner", "nowhere", "outer", "watch"];

fn vmlinux() -> Vec<u8> {
    let mut b = Builder::default();
    let (u, inner, a, c, outer, arr, ids) = (
        b.string(0, "unsigned int"),
        b.string(0, "inner"),
        b.string(0, "a"),
        b.string(0, "c"),
        b.string(0, "outer"),
        b.string(0, "arr"),
        b.string(0, "ids"),
    );
    b.add(u, KIND_INT, 0, 4, &[32]); // 1
    b.add(inner, KIND_STRUCT, 2, 8, &[a, 1, 0, c, 1, 32]); // 2
    b.add(0, KIND_ARRAY, 0, 0, &[2, 1, 2]); // 3: inner[2]
    b.add(0, KIND_UNION, 1, 4, &[c, 1, 0]); // 4: anonymous
    b.add(outer, KIND_STRUCT, 2, 20, &[arr, 3, 32, 0, 4, 0]); // 5
    b.add(0, KIND_PTR, 0, 5, &[]); // 6
    b.add(ids, KIND_ENUM, 2, 4, &[a, 3, c, 5]); // 7
    b.finish()
}

#[test]
fn constants_have_their_values() {
    let blob = vmlinux();
    let btf = Btf::parse(&blob, None, WANTED).unwrap();
    assert_eq!(btf.constant("ids", "c").unwrap(), Some(5));
    assert_eq!(btf.constant("ids", "arr").unwrap(), None);
    assert_eq!(btf.constant("inner", "a").unwrap(), None);
}

#[test]
fn members_are_found_through_arrays_and_anonymous_unions() {
    let blob = vmlinux();
    let btf = Btf::parse(&blob, None, WANTED).unwrap();
    assert_eq!(btf.member("inner", &["c"]).unwrap(), Some(4));
    assert_eq!(btf.member("outer", &["arr", "c"]).unwrap(), Some(8));
    assert_eq!(btf.member("outer", &["c"]).unwrap(), Some(0));
    assert_eq!(btf.member("outer", &["nowhere"]).unwrap(), None);
    assert_eq!(btf.member("nowhere", &["c"]).unwrap(), None);
    assert_eq!((btf.size("inner").unwrap(), btf.size("nowhere").unwrap()), (Some(8), None));
}

#[test]
fn a_module_continues_the_numbering_of_vmlinux() {
    let blob = vmlinux();
    let base = Btf::parse(&blob, None, WANTED).unwrap();
    let strings = u32::try_from(base.strings.len()).unwrap();
    let mut b = Builder::default();
    let (f, p, n) = (b.string(strings, "watch"), b.string(strings, "o"), b.string(strings, "n"));
    b.add(0, KIND_FUNC_PROTO, 2, 1, &[p, 6, n, 1]); // 8
    b.add(f, KIND_FUNC, 0, 8, &[]); // 9
    let blob = b.finish();
    let module = Btf::parse(&blob, Some(&base), WANTED).unwrap();
    assert_eq!(module.function("watch").unwrap(), Some(9));
    assert_eq!(
        module.prototype("watch").unwrap().as_deref(),
        Some("unsigned int watch(struct outer *o, unsigned int n)")
    );
    assert_eq!(module.member("inner", &["c"]).unwrap(), Some(4));
}

#[test]
fn what_was_not_searched_for_is_no_answer() {
    let blob = vmlinux();
    let btf = Btf::parse(&blob, None, WANTED).unwrap();
    assert!(btf.member("another", &["c"]).is_err());
    assert!(btf.function("another").is_err());
}

proptest::proptest! {
    /// Only some places are remembered: every type in between is found by walking.
    #[test]
    fn any_number_of_types_may_come_before(before in 0_u32..200, between in 0_u32..200) {
        let mut b = Builder::default();
        let (inner, outer, a, c) = (b.string(0, "inner"), b.string(0, "outer"), b.string(0, "a"), b.string(0, "c"));
        let fill = |b: &mut Builder, count: u32| {
            for number in 0..count {
                // Of all sizes that types have.
                match number % 3 {
                    0 => b.add(0, KIND_PTR, 0, 1, &[]),
                    1 => b.add(0, KIND_INT, 0, 4, &[32]),
                    _ => b.add(0, KIND_STRUCT, 2, 8, &[a, 1, 0, c, 1, 32]),
                }
            }
        };
        b.add(0, KIND_INT, 0, 4, &[32]); // 1
        fill(&mut b, before);
        b.add(inner, KIND_STRUCT, 2, 8, &[a, 1, 0, c, 1, 32]);
        fill(&mut b, between);
        b.add(outer, KIND_STRUCT, 1, 16, &[a, 2 + before, 64]);
        let blob = b.finish();
        let btf = Btf::parse(&blob, None, WANTED).unwrap();
        proptest::prop_assert_eq!(btf.end(), 4 + before + between);
        proptest::prop_assert_eq!(btf.find(KIND_STRUCT, "inner").unwrap(), Some(2 + before));
        proptest::prop_assert_eq!(btf.member("outer", &["a", "c"]).unwrap(), Some(12));
    }

    #[test]
    fn damaged_btf_is_an_error_not_a_panic(at in 0_usize..200, byte: u8, cut in 0_usize..250) {
        let mut blob = vmlinux();
        if let Some(place) = blob.get_mut(at) {
            *place = byte;
        }
        blob.truncate(cut);
        if let Ok(btf) = Btf::parse(&blob, None, WANTED) {
            let _ = btf.member("outer", &["arr", "c"]);
            let _ = btf.prototype("watch");
        }
    }
}
