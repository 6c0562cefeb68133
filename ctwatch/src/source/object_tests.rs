use std::collections::BTreeSet;

use super::*;

#[test]
fn what_programs_refer_to_is_there() {
    let object = Object::parse(&Globals::default()).unwrap();
    assert!(!object.programs.is_empty());
    for (name, Program { code, .. }) in &object.programs {
        for (at, place) in references(code) {
            assert!(place < object.maps.len(), "{name}");
            // An address takes two instructions, of which the second has no code.
            assert_eq!(code[at + 1].code, 0, "{name}");
        }
    }
    assert!(object.programs.keys().any(|program| object.uses(program, "COUNTERS")));
    assert!(!object.programs.keys().any(|program| object.uses(program, "NOWHERE")));
}

#[test]
fn offsets_are_written_into_the_instructions_that_note_them() {
    let noted_in = |object: &Object, program: &str| -> Vec<Field> {
        object.programs[program].code.iter().copied().filter_map(noted).collect()
    };
    let bare = Object::parse(&Globals::default()).unwrap();
    assert!(!noted_in(&bare, "hash_insert_bpf").is_empty());
    let mut globals = Globals::default();
    for field in Field::ALL {
        globals.field(field, 1000 + 8 * field as u32);
    }
    let object = Object::parse(&globals).unwrap();
    for (name, Program { code, .. }) in &object.programs {
        assert_eq!(noted_in(&object, name), [], "{name}");
        for (before, after) in bare.programs[name].code.iter().zip(code) {
            let expected = noted(*before).map_or(before.off, |field| 1000 + 8 * field as i16);
            assert_eq!((before.code, expected), (after.code, after.off), "{name}");
        }
    }
    globals.field(Field::NetInum, 40_000);
    assert!(Object::parse(&globals).is_err());
}

#[test]
fn constants_must_exist_and_fit() {
    let parse = |name: &str, value: &[u8]| {
        let mut globals = Globals::default();
        globals.set(name, value);
        Object::parse(&globals).map(drop)
    };
    assert!(parse("FILTER_NETNS", &7_u32.to_ne_bytes()).is_ok());
    assert!(parse("FILTER_NETNS", &[7]).is_err());
    assert!(parse("NOWHERE", &[7]).is_err());
}

#[test]
fn constants_reach_the_data_that_the_kernel_gets() {
    let data = |netns: u32| {
        let mut globals = Globals::default();
        globals.set("FILTER_NETNS", &netns.to_ne_bytes());
        let object = Object::parse(&globals).unwrap();
        let maps = object.maps.iter().map(|map| (map.name.clone(), map.definition.data().to_vec()));
        maps.collect::<BTreeMap<_, _>>()
    };
    let (without, with) = (data(0), data(0x1234_5678));
    let changed: Vec<_> = without.iter().filter(|(name, data)| with[*name] != **data).collect();
    assert_eq!(changed.len(), 1);
    assert!(with[changed[0].0].windows(4).any(|bytes| bytes == 0x1234_5678_u32.to_ne_bytes()));
}

#[test]
fn global_functions_are_listed_with_as_many_arguments_as_they_have() {
    use ctwatch_ebpf::GLOBAL_FUNCTIONS;

    let parsed = aya_obj::Object::parse(object()).unwrap();
    let bytes = parsed.btf.as_ref().unwrap().to_bytes();
    let names = GLOBAL_FUNCTIONS.map(|(name, _)| name);
    let btf = crate::kernel::btf::Btf::parse(&bytes, None, &names).unwrap();
    for (name, arguments) in GLOBAL_FUNCTIONS {
        let prototype = btf.prototype(name).unwrap().unwrap();
        let (before, list) = prototype.split_once('(').unwrap();
        assert!(before.starts_with("u64 "), "{prototype}");
        let types: Vec<&str> = list.split(", ").map(|argument| argument.split(' ').next().unwrap()).collect();
        assert_eq!(types, vec!["u64"; arguments as usize], "{prototype}");
    }
    let exported: BTreeSet<&str> = parsed
        .functions
        .values()
        .map(|function| function.name.as_str())
        .filter(|name| !name.starts_with('_') && !parsed.programs.contains_key(*name))
        // The compiler's own, which no program calls.
        .filter(|name| !["bcmp", "memcmp", "memcpy", "memmove", "memset"].contains(name))
        .collect();
    assert_eq!(exported, names.into_iter().collect(), "what the object exports and what is listed");
}

#[test]
fn a_program_says_where_its_functions_begin_and_which_of_them_are_global() {
    let object = Object::parse(&Globals::default()).unwrap();
    let Program { code, functions } = &object.programs["delete_from_lists_bpf"];
    let starts: Vec<u32> = functions.iter().map(|function| function.insn_off).collect();
    assert!(starts[0] == 0 && starts.is_sorted() && starts.len() > 3);
    // Each but the first begins behind the end of another one: `BPF_JMP | BPF_EXIT`, or a jump.
    for start in &starts[1..] {
        assert!([0x95, 0x05].contains(&code[*start as usize - 1].code), "{start}");
    }
    let types: BTreeSet<u32> = functions.iter().map(|function| function.type_id).collect();
    assert!(types.len() > 3, "{functions:?}");
    assert!(object.programs["iterate_ret"].functions.is_empty());
}
