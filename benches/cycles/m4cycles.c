/* A QEMU TCG plugin that prices each executed instruction by a model of the Cortex-M4's pipeline.
 *
 * The model is that of the Cortex-M4 Technical Reference Manual (table of instruction timings) with zero wait states:
 * a single load takes 2 cycles, or 1 where it follows a load; a load or store of n words n + 1; a taken branch 2 more than its
 * 1 for refilling the pipeline; a division 8 (it is 2 to 12); everything else 1. Flash that is slower than the core, bus
 * contention and the data-dependent part of divisions are not in it: it is a model, not a measurement on silicon.
 *
 * What lies between two calls of one function is one span: the firmware calls its counter's `ticks` before and after every
 * layer. One line is printed for each span: its instructions, and its cycles.
 *
 *   cc -shared -fPIC -O2 m4cycles.c -o m4cycles.so
 *   qemu-system-arm ... -plugin ./m4cycles.so,ticks=0x1234
 *
 * Written against version 1 of the plugin interface (QEMU 4.2 and later), whose few declarations are repeated here, since
 * distributions do not package its header.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), enum qemu_plugin_cb_flags, void *);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned, void *), enum qemu_plugin_cb_flags, void *);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, enum qemu_plugin_op, void *, uint64_t);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

static uint64_t ticks_address;
static uint64_t instructions, cycles;
static uint64_t span_instructions, span_cycles;
static bool in_span;
static uint64_t fallthrough; /* where the last block goes on if its branch is not taken */

struct block {
    uint64_t start, end;
};

static void on_block(unsigned cpu, void *data)
{
    (void)cpu;
    const struct block *block = data;
    if (block->start != fallthrough)
        cycles += 2;
    fallthrough = block->end;
}

static void on_ticks(unsigned cpu, void *data)
{
    (void)cpu, (void)data;
    if (in_span)
        printf("span instructions %" PRIu64 " cycles %" PRIu64 "\n", instructions - span_instructions, cycles - span_cycles);
    span_instructions = instructions;
    span_cycles = cycles;
    in_span = !in_span;
}

/* How many words an instruction moves between memory and core registers, and which way. */
struct transfer {
    int words; /* 0: none */
    bool load;
};

static struct transfer transfer(const uint16_t *code, size_t bytes)
{
    const unsigned a = code[0], b = bytes == 4 ? code[1] : 0;
    if (bytes == 2) {
        switch (a >> 12) {
        case 0x4: /* LDR (literal); the rest computes */
            return (struct transfer){(a & 0x0800) ? 1 : 0, true};
        case 0x5: /* register offset: STR, STRH, STRB, then the loads */
            return (struct transfer){1, (a >> 9 & 7) >= 3};
        case 0x6: case 0x7: case 0x8: case 0x9: /* immediate offset */
            return (struct transfer){1, a & 0x0800};
        case 0xb: /* PUSH, POP */
            if ((a & 0x0600) == 0x0400)
                return (struct transfer){__builtin_popcount(a & 0x1ff), a & 0x0800};
            break;
        case 0xc: /* STM, LDM */
            return (struct transfer){__builtin_popcount(a & 0xff), a & 0x0800};
        }
        return (struct transfer){0, false};
    }
    if ((a & 0xfe40) == 0xe800) /* STM, LDM */
        return (struct transfer){__builtin_popcount(b), a & 0x10};
    if ((a & 0xfe40) == 0xe840) { /* STRD, LDRD; or exclusives and table branches, which move one word */
        const bool dual = (a & 0x0120) != 0;
        return (struct transfer){dual ? 2 : 1, a & 0x10};
    }
    if ((a & 0xfe00) == 0xf800) /* STR, LDR, all sizes */
        return (struct transfer){1, a & 0x10};
    if ((a & 0xfe00) == 0xec00 && (b & 0x0e00) == 0x0a00) { /* VFP */
        if ((a & 0x0120) == 0x0100) /* VSTR, VLDR */
            return (struct transfer){(b & 0x0100) ? 2 : 1, a & 0x10};
        if ((a & 0x01e0) != 0x0040) /* VSTM, VLDM, VPUSH, VPOP; not the moves of two registers */
            return (struct transfer){b & 0xff, a & 0x10};
    }
    return (struct transfer){0, false};
}

static bool division(const uint16_t *code, size_t bytes)
{
    return bytes == 4 && (code[0] & 0xffd0) == 0xfb90 && (code[1] & 0xf0) == 0xf0;
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    (void)id;
    const size_t count = qemu_plugin_tb_n_insns(tb);
    struct block *block = malloc(sizeof *block); /* as long as the code it describes: for ever */
    block->start = block->end = qemu_plugin_tb_vaddr(tb);
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, QEMU_PLUGIN_CB_NO_REGS, block);
    bool after_load = false;
    for (size_t i = 0; i < count; i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(tb, i);
        const uint16_t *code = qemu_plugin_insn_data(instruction);
        const size_t bytes = qemu_plugin_insn_size(instruction);
        const uint64_t address = qemu_plugin_insn_vaddr(instruction);
        block->end = address + bytes;
        if (address == ticks_address)
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, on_ticks, QEMU_PLUGIN_CB_NO_REGS, NULL);

        const struct transfer moved = transfer(code, bytes);
        uint64_t cost = 1;
        if (moved.words > 1)
            cost = moved.words + 1;
        else if (moved.words == 1 && moved.load)
            cost = after_load ? 1 : 2;
        else if (division(code, bytes))
            cost = 8;
        after_load = moved.words > 0 && moved.load;
        qemu_plugin_register_vcpu_insn_exec_inline(instruction, QEMU_PLUGIN_INLINE_ADD_U64, &instructions, 1);
        qemu_plugin_register_vcpu_insn_exec_inline(instruction, QEMU_PLUGIN_INLINE_ADD_U64, &cycles, cost);
    }
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++)
        if (strncmp(argv[i], "ticks=", 6) == 0)
            ticks_address = strtoull(argv[i] + 6, NULL, 0) & ~UINT64_C(1);
    if (ticks_address == 0) {
        fprintf(stderr, "m4cycles: give the address of the function that bounds a span: ticks=0x...\n");
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    return 0;
}
