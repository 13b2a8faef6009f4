# saaz_embed(<target> <file>...): compiles files of the source tree into <target>, to be found through embedded_files()
# (src/cli/embedded.h). The assembler includes their bytes, so a large file costs no compile time.
function(saaz_embed target)
  set(blocks "")
  set(rows "")
  set(index 0)
  foreach(path IN LISTS ARGN)
    string(APPEND blocks
      "__asm__(\".section .rodata\\n.balign 64\\nsaaz_embedded_${index}:\\n.incbin \\\"${CMAKE_SOURCE_DIR}/${path}\\\"\\n\"\n"
      "        \"saaz_embedded_${index}_end:\\n.byte 0\\n.previous\\n\");\n"
      "extern \"C\" const char saaz_embedded_${index}[], saaz_embedded_${index}_end[];\n")
    string(APPEND rows
      "      {\"${path}\", between(saaz_embedded_${index}, saaz_embedded_${index}_end)},\n")
    math(EXPR index "${index} + 1")
  endforeach()
  set(source "${CMAKE_BINARY_DIR}/embedded_files.cc")
  file(GENERATE OUTPUT "${source}" CONTENT "// Written by cmake/embed.cmake.
#include \"cli/embedded.h\"

${blocks}
namespace saaz {
namespace {
std::string_view between(const char* begin, const char* end) { return {begin, static_cast<size_t>(end - begin)}; }
}  // namespace
std::span<const EmbeddedFile> embedded_files() {
  static const EmbeddedFile kFiles[] = {
${rows}  };
  return kFiles;
}
}  // namespace saaz
")
  set(inputs ${ARGN})
  list(TRANSFORM inputs PREPEND "${CMAKE_SOURCE_DIR}/")
  set_source_files_properties("${source}" PROPERTIES OBJECT_DEPENDS "${inputs}")
  target_sources(${target} PRIVATE "${source}")
endfunction()
