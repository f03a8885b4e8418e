const all=[...document.querySelectorAll('video,audio')];
for(const media of all){
  const spec=media.parentElement.querySelector('.spec'),line=spec&&spec.querySelector('i');
  const draw=()=>{if(line&&media.duration){line.style.opacity=.9;
line.style.left=100*media.currentTime/media.duration+'%'}
    if(!media.paused)requestAnimationFrame(draw)};
  media.addEventListener('play',()=>{for(const other of all)if(other!==media)other.pause();draw()});
  media.addEventListener('seeked',draw);
  if(spec)spec.addEventListener('click',event=>{const box=spec.getBoundingClientRect();
    if(media.duration)media.currentTime=media.duration*(event.clientX-box.left)/box.width;media.play()});
}
